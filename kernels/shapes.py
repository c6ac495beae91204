"""What an operation is handed, held against what it says: shapes only, which costs nothing and reads nothing from a device."""

from __future__ import annotations

from torch import Tensor


def fits(operation: str, argument: str, x: Tensor, *shape: int) -> None:
    """Raise ``ValueError`` where ``x`` does not have ``shape``."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{operation}: {argument} has shape {tuple(x.shape)}; allowed: {shape}")
