"""The highest of many scores, with ties given to the lowest index."""

from __future__ import annotations

from torch import Tensor


def top_k(score: Tensor, k: int) -> Tensor:
    """Indices (B, k) of the k highest of ``score`` (B, N), highest first; ties go to the lowest index."""
    return score.float().sort(dim=1, descending=True, stable=True).indices[:, :k]
