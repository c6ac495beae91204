"""Numbers that the host knows, put on a device without waiting for what the device is doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def uploaded(numbers: Sequence[Any] | int | float, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``numbers``, nested as deep as they are, on ``device``.

    ``torch.tensor(numbers, device=...)`` copies and then waits until everything queued before is done; these few bytes are
    taken over by the driver at once, and arrive in their turn.
    """
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
