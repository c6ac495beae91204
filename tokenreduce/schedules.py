"""How many tokens leave in which block or layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from tokenreduce.model_facts import ModelFacts
from tokenreduce.validation import in_range

Place = Literal["encoder", "projector"]
PLACES = (None, "encoder", "projector")


def largest_remainder(quotas: Sequence[float | Fraction], total: int) -> list[int]:
    """Whole numbers that sum to ``total``: ``quotas`` rounded down, the largest remainders up (ties: the first)."""
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def schedule(r: int | list[int] | tuple[int, float], depth: int) -> list[int]:
    """Tokens to merge in each of ``depth`` blocks, from the three forms of ``r`` of the release.

    An int: the same everywhere. A list: as it stands, zeros appended. A pair (r, f), f in [-1, 1]: linear from
    ``int(r (1 - f))`` to ``2 r`` minus that, truncated, so that the sum can fall a little short of ``r * depth``.

    Errors: ``TypeError`` for anything else, ``ValueError`` for negative numbers, f out of range or a list too long.

    >>> schedule(8, 3), schedule([5, 4], 3), schedule((8, -1.0), 3)
    ([8, 8, 8], [5, 4, 0], [16, 8, 0])
    """
    if isinstance(r, list):
        if not all(_is_count(value) for value in r):
            raise ValueError(
                f"r={r!r}; allowed in a list: ints >= 0, one per block. A pair is a tuple, such as r=(8, -1.0)"
            )
        if len(r) > depth:
            raise ValueError(f"r={r!r} has {len(r)} entries for the {depth} blocks of this tower; give at most {depth}")
        return r + [0] * (depth - len(r))
    if isinstance(r, tuple) and len(r) == 2 and _is_count(r[0]):
        base, inflection = r
        in_range("the inflection in r=(r, inflection)", inflection, -1.0, 1.0)
        if depth == 1:
            return [base]
        low = int(base * (1 - inflection))
        high = 2 * base - low
        return [int(low + (high - low) / (depth - 1) * block) for block in range(depth)]
    if isinstance(r, tuple) or not _is_count(r):
        raise TypeError(
            f"r={r!r}; allowed: an int >= 0 (tokens merged per block), a list of such ints, or a pair (r, inflection) "
            "such as (8, -1.0)"
        )
    return [r] * depth


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def spread(total: int, depth: int, inflection: float = 0.0) -> list[int]:
    """``total`` merges over ``depth`` blocks, linear from ``1 - inflection`` to ``1 + inflection`` times the mean.

    Largest remainders are rounded up, the earliest of equal ones: evenly, the earliest blocks merge one more.
    """
    if depth == 1:
        return [total]
    return largest_remainder(
        [total / depth * (1 + inflection * (2 * block / (depth - 1) - 1)) for block in range(depth)], total
    )


STAIRCASES = ("constant", "linear", "reverse_linear")


def staircase(total: int, depth: int, kind: str) -> list[int]:
    """``total`` merges over ``depth`` blocks in whole steps, as DyMU's release makes them.

    ``constant``: evenly, the first blocks one more. ``linear``: falling from ``2 total // depth``, rounded down, until
    ``total`` is reached; where it is not, the first blocks one more each, from which the release does not return.
    ``reverse_linear``: the same backwards.

    >>> staircase(10, 4, "constant"), staircase(10, 4, "linear"), staircase(10, 4, "reverse_linear")
    ([3, 3, 2, 2], [5, 3, 2, 0], [0, 2, 3, 5])
    """
    if kind == "constant":
        each, more = divmod(total, depth)
        return [each + (block < more) for block in range(depth)]
    first, counts = 2 * total // depth, [0] * depth
    for block in range(depth):
        counts[block] = min(int(first - block * first / depth), total - sum(counts))
    each, more = divmod(total - sum(counts), depth)
    counts = [count + each + (block < more) for block, count in enumerate(counts)]
    return counts if kind == "linear" else counts[::-1]


def fit(wanted: list[int], n: int, k: int) -> list[int]:
    """``wanted`` merges per block made possible: from ``n`` patches to exactly ``k``, no block merging more than half.

    What a block cannot merge is left to later ones; where later ones could not make up for it, a block merges more.

    Errors: ``ValueError`` when not even halving in every block leads from ``n`` to ``k``.
    """
    depth = len(wanted)
    if n > k << depth:
        raise ValueError(
            f"keep={k} of {n} patches: a block merges at most half of its patches, so {depth} blocks leave at least "
            f"{-(-n >> depth)}; ask for that many, or shorten further after the tower, for example with "
            "tr.wrap(model, tr.ToMe(keep=0.5), tr.FasterVLM(keep=16))"
        )
    counts, owed = [], 0
    for block, r in enumerate(wanted):
        owed += r
        must = n - (k << (depth - block - 1))
        count = min(max(owed, must, 0), n // 2, n - k)
        counts.append(count)
        owed, n = owed - count, n - count
    return counts


def scaled_layers(layers: Sequence[int], of: int, depth: int, *, last: int | None = None) -> tuple[int, ...]:
    """Layers (0-based) that a paper names for a model of ``of`` layers, in one of ``depth``: in proportion, ascending, distinct.

    Rounded to the nearest (half to even) and at most ``last``, by default ``depth - 1``.

    >>> scaled_layers((2, 6, 15), 32, 28), scaled_layers((2, 6, 15), 32, 4)
    ((2, 5, 13), (0, 1, 2))
    """
    most = depth - 1 if last is None else last
    return tuple(sorted({min(round(layer / of * depth), most) for layer in layers}))


def can_merge_inside(facts: ModelFacts) -> bool:
    """Whether patches, or the units of them that become one token, can merge inside the tower of such a model."""
    return "encoder" in facts.stages or "projector" not in facts.stages


def merging_place(at: Place | None, facts: ModelFacts) -> Place:
    """Where a method merges that is asked to at ``at``; None: inside the tower, or behind it where that cannot be."""
    return at or ("encoder" if can_merge_inside(facts) else "projector")


def place_substitute(at: Place | None, facts: ModelFacts) -> tuple[str, ...]:
    """What to say where ``merging_place`` chose the projector by itself."""
    if at is not None or can_merge_inside(facts):
        return ()
    return ("the tokens handed to the language model merging in place of patches: those of this vision tower cannot",)


def needs_encoder(name: str, facts: ModelFacts) -> None:
    """Raise where a tower of a vision-language model cannot merge, with what can be done instead."""
    if not can_merge_inside(facts):
        raise ValueError(
            f"method={name!r} merges patches inside the vision encoder, but those of a {facts.family} model make no units, a "
            "few patches for each token, that could stay whole; pass at='projector' to merge the tokens handed to the language "
            "model instead"
        )


def decay(first: int, goal: float, runs: list[int], *, first_power: int = 0) -> float:
    """q in [0, 1] for which lengths ``first`` * q^(i + first_power), each at least 1, over ``runs`` average ``goal``."""
    low, high, depth = 0.0, 1.0, sum(runs)
    for _ in range(60):
        q = (low + high) / 2
        average = sum(run * max(1.0, first * q ** (i + first_power)) for i, run in enumerate(runs)) / depth
        low, high = (q, high) if average < goal else (low, q)
    return high


def lengths(first: int, goal: float, runs: list[int]) -> list[int]:
    """Whole lengths, ``first`` and then falling geometrically, whose average over ``runs`` is ``goal``, as nearly as they
    can: each is set in turn, longest run first, to what the others leave.
    """
    q, total = decay(first, goal, runs), goal * sum(runs)
    found = [first, *(max(1, round(first * q**i)) for i in range(1, len(runs)))]
    for i in sorted(range(1, len(runs)), key=lambda i: -runs[i]):
        rest = total - sum(run * n for j, (run, n) in enumerate(zip(runs, found)) if j != i)
        below = found[i + 1] if i + 1 < len(found) else 1
        found[i] = min(max(round(rest / runs[i]), below), found[i - 1])
    return found


class Line(NamedTuple):
    """Of ``depth`` layers, those after ``start`` on drop ``slope`` of the tokens that entered, each."""

    depth: int
    start: int
    slope: float

    def left(self, layer: int) -> float:
        """Share of the tokens that are there after ``layer``."""
        return max(0.0, 1 - self.slope * max(0, layer - self.start + 1))

    def total(self, n: int) -> int:
        """Tokens that all layers take in together, of ``n`` that enter."""
        return sum(rounded(n, self.left(layer - 1)) for layer in range(self.depth))


def rounded(n: int, share: float) -> int:
    """``n * share`` rounded down, of a product that may fall just short of a whole number."""
    return math.floor(n * share + 1e-6)
