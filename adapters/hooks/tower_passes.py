"""What is noted of the passes of a vision tower, and what of it belongs to a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from tokenreduce.adapters.hooks.encoding_cost import EncodingCost
from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.signals import Signal


@dataclass
class TowerPass(TowerCall):
    """A pass of a tower and what was heard in it.

    Attributes:
        prints: (rows,) fingerprints of the pixels, where asked for.
        values: per signal, (rows, N) of the tower's rows, or, where pictures are packed, (N,) in pieces.
        state: what was merged; None for nothing.
        cost: what is noted of its FLOPs.
    """

    prints: Tensor | None = None
    values: dict[Signal, list[Tensor]] = field(default_factory=dict)
    state: TowerState | None = None
    cost: EncodingCost | None = None


class Encoded(NamedTuple):
    """Encoded pictures of a prompt: the signals of each, what was merged, and how many decoder rows share a sample."""

    pictures: list[Picture]
    values: dict[Signal, list[Tensor]]
    rows: list[range]
    states: list[TowerState]  # of the passes that merged
    repeat: int
    costs: list[EncodingCost]
