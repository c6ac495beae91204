"""What only a step inside an encoder can be shown: what enters its block, and numbers of the block's attention map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenreduce.signals import Signal


@dataclass(frozen=True)
class BlockInput(Signal):
    """What enters tower block ``block`` (0-based), prefix rows included: (B, N, C). Of units of several patches, their mean."""

    block: int


@dataclass(frozen=True)
class AttentionMap(Signal):
    """A number per token of the softmax attention map of tower block ``block`` (0-based), prefix rows included: (B, N).

    ``of``: the [CLS] row (``cls``); what a token receives from all (``received``, a sum) or pays itself (``diagonal``); or how
    much it attends like others (``likeness``, the sum of the cosines of its row of the map with those of all patches). ``heads``
    reduces the heads by ``mean`` or ``max``; of ``likeness``, before the cosines.
    """

    block: int
    of: Literal["cls", "received", "diagonal", "likeness"]
    heads: Literal["mean", "max"] = "mean"
