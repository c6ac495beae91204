"""Variants of merging by energy: matching and margin of each block, and how many tokens a share leaves in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tokenreduce.matching import Matching
from tokenreduce.schedules import fit


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A variant; the fields are the switches of ``PiToMe``.

    A pair in ``matching`` is for the first half of the blocks (rounded up; with ``through_half`` the middle block, too)
    and the others; a list has one entry per block, the last repeated.
    """

    metric: Literal["keys", "features"] = "keys"
    when: Literal["middle", "after"] = "middle"
    matching: Matching | list[Matching] | tuple[Matching, Matching] = "energy"
    through_half: bool = False
    m0: float = 0.9
    fall: float | None = None
    size_weighted: bool = True
    prop_attn: bool = False

    def matchings(self, depth: int) -> list[Matching]:
        """The matching of each of ``depth`` blocks."""
        match self.matching:
            case str():
                return [self.matching] * depth
            case list():
                return self.matching[:depth] + self.matching[-1:] * (depth - len(self.matching))
            case first, other:
                half = depth // 2 + 1 if self.through_half else math.ceil(depth / 2)
                return [first if block < half else other for block in range(depth)]

    def margin(self, block: int, depth: int) -> float:
        """High in early blocks, where only near duplicates count, low in late ones."""
        return self.m0 - (self.m0 if self.fall is None else self.fall) * block / depth


PRESETS = {
    "llava": Preset(
        metric="features", when="after", matching=("bsm", "energy"), through_half=True, size_weighted=False
    ),
    "keys": Preset(prop_attn=True),
    "keys_bsm": Preset(matching="energy_bsm", prop_attn=True),
    "deit": Preset(matching=("energy_bsm", "energy"), m0=0.75),
    "mae": Preset(matching=("energy", "energy_bsm"), m0=0.75),
    "aug": Preset(matching=("energy_bsm", "energy")),
    "blip": Preset(metric="features"),
    "blip2": Preset(m0=0.75, fall=0.4, prop_attn=True),
    "clip": Preset(metric="features", m0=0.95),
}


class Merge(float):
    """The number of a step, and what else the block needs to know.

    From 1 on it counts the tokens to merge; below 1 it is rho, the share to keep of tokens counted when they are seen.
    """

    def __new__(cls, number: float, matching: Matching = "energy", margin: float = 0.9, weighted: bool = True) -> Merge:
        self = super().__new__(cls, number)
        self.matching, self.margin, self.weighted = matching, margin, weighted
        return self

    matching: Matching
    margin: float
    weighted: bool


class Rounds(float):
    """The number of rounds at the projector, and what each of them needs to know."""

    def __new__(cls, each: list[Merge]) -> Rounds:
        self = super().__new__(cls, len(each))
        self.each = each
        return self

    each: list[Merge]


def merges(n: int, share: float, cls: int, matching: Matching) -> int:
    """``floor(T - T rho)``, at most half of the ``n`` patches; only plain matching counts the [CLS] token in T.

    Evaluated as written, in double precision.
    """
    total = n + cls if matching == "bsm" else n
    return min(math.floor(total - total * float(share)), n // 2)


def spread_by_share(n: int, k: int, cls: int, matchings: list[Matching]) -> list[int]:
    """Merges per block from ``n`` patches to exactly ``k``, by one share rho for all blocks.

    Of all shares the one that leaves the fewest patches, but at least ``k``; the last block merges the rest.
    """

    def simulate(share: float) -> list[int]:
        counts: list[int] = []
        for matching in matchings:
            counts.append(merges(n - sum(counts), share, cls, matching))
        return counts

    low, high = 0.25, 1.0  # below 0.5 every block merges half
    while low < (middle := (low + high) / 2) < high:
        if n - sum(simulate(middle)) >= k:
            high = middle
        else:
            low = middle
    return fit(simulate(high), n, k)
