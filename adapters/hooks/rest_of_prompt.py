"""The text behind the last picture of a prompt, where it is read in a pass of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.sequence_packing import Packing


@dataclass
class Rest:
    """The text behind the last picture of each row; rows without a picture have none, and are read whole in the first part.

    Attributes:
        packing: its columns; ``behind``, (B, L) bool, where they begin, padding included.
        given: what the decoder was handed, less what joins visual tokens.
        past: by layer, columns of the cache that it was read behind; None: not read yet.
    """

    packing: Packing
    behind: Tensor
    given: dict[str, Any]
    past: list[int] | None = None

    @property
    def counts(self) -> list[int]:
        return self.packing.counts

    def id_before(self, along: Tensor, end: Tensor) -> Tensor:
        """(B,) of the caller's ids ``along`` (B, L), the one in front of this text; of a row without, its ``end`` (B,)."""
        text = self.packing.alive
        begin = along.gather(1, text.to(torch.uint8).argmax(dim=1, keepdim=True))[:, 0]
        return torch.where(text.any(dim=1), begin - 1, end)
