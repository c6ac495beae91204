"""What is noted of the passes of a vision tower, and what of it belongs to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from tokenreduce.adapters.hooks.encoding_cost import EncodingCost
from tokenreduce.adapters.hooks.packed_entrance import EnteringRows
from tokenreduce.adapters.hooks.tower_history import of_segments
from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.hooks.unit_selection import UnitSelection
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.provenance import StageTrace
from tokenreduce.signals import Signal


@dataclass
class TowerPass(TowerCall):
    """A pass of a tower and what was heard in it.

    Attributes:
        prints: (rows,) fingerprints of the pixels, where asked for.
        values: per signal, (rows, N) of the tower's rows, or, where pictures are packed, (N,) in pieces.
        state: what was merged; None for nothing.
        cost: what is noted of its FLOPs.
        selection: which units entered its blocks; None: all; ``entered``, the same of the rows of a tower that packs.
    """

    prints: Tensor | None = None
    values: dict[Signal, list[Tensor]] = field(default_factory=dict)
    state: TowerState | None = None
    cost: EncodingCost | None = None
    selection: UnitSelection | None = None
    entered: EnteringRows | None = None

    def counts(self, whole: list[int]) -> list[int]:
        """Rows of each picture in the blocks of a tower that packs, of ``whole`` where all entered."""
        if self.selection is None:
            return whole
        return [int(kept.sum()) * rows.shape[1] for kept, rows in zip(self.selection.kept, self.selection.rows)]


class Finished(NamedTuple):
    """A pass that ran to its end, and the pictures that it encoded, in order."""

    call: TowerPass
    pictures: list[Picture]


class Pick(NamedTuple):
    """One of the pictures of a pass."""

    passed: Finished
    index: int  # type: ignore[assignment]  # the word of the tuple it is

    @property
    def picture(self) -> Picture:
        return self.passed.pictures[self.index]


class Encoded(NamedTuple):
    """Encoded pictures of a prompt: the signals of each, what was merged, and how many decoder rows share a sample.

    ``unseen``: of each, what happened to its tokens before the tower; None: nothing. Empty where nothing happened to any.
    ``inside``: of each picture of a tower that packs, what happened to it there.
    """

    pictures: list[Picture]
    values: dict[Signal, list[Tensor | None]]
    rows: list[range]
    states: list[TowerState]  # of the passes, where they merge
    repeat: int
    costs: list[EncodingCost]
    unseen: list[StageTrace | None]
    inside: list[list[StageTrace]]

    @classmethod
    def of(
        cls, picks: Sequence[Pick], repeat: int, values: Mapping[Signal, Callable[[Finished], Sequence[Tensor | None]]]
    ) -> Encoded:
        """What is known of the pictures ``picks``; ``values``, per signal, gives that of each picture of a pass."""
        passes = {id(pick.passed): pick.passed for pick in picks}
        signals = {s: {key: of(passed) for key, passed in passes.items()} for s, of in values.items()}
        first, before = {}, 0  # row of the joined passes at which each picture begins
        for key, passed in passes.items():
            for i, picture in enumerate(passed.pictures):
                first[key, i] = before
                before += picture.rows
        begins = [first[id(pick.passed), pick.index] for pick in picks]
        states = [
            state for passed in passes.values() if (state := passed.call.state) is not None and state.made is None
        ]
        chosen = [pick.passed.call.selection for pick in picks]
        unseen = [None if own is None else own.pictures[pick.index] for own, pick in zip(chosen, picks)]
        inside = [inside_of(pick) for pick in picks if not pick.passed.call.rows]
        return cls(
            pictures=[pick.picture for pick in picks],
            values={s: [found[id(pick.passed)][pick.index] for pick in picks] for s, found in signals.items()},
            rows=[range(start, start + pick.picture.rows) for start, pick in zip(begins, picks)],
            states=states if any(state.history for state in states) else [],
            repeat=repeat,
            costs=[passed.call.cost for passed in passes.values() if passed.call.cost is not None],
            unseen=unseen if any(passed is not None for passed in unseen) else [],
            inside=inside,
        )


def inside_of(pick: Pick) -> list[StageTrace]:
    """What happened to a picture inside a tower that packs."""
    state = pick.passed.call.state
    if state is None:
        return []
    frames = [picture.layout.frames for picture in pick.passed.pictures]
    first = sum(frames[: pick.index])
    return of_segments(state, range(first, first + frames[pick.index]))
