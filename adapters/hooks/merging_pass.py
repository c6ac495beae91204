"""What is noted of one pass of a tower in which rows merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tokenreduce.adapters.hooks.packed_units import Windows
from tokenreduce.adapters.hooks.ragged_rows import Group
from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.encoder_steps import EncoderStep
from tokenreduce.pipeline import Pipeline
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Signal
from tokenreduce.tokens import VisualTokens

WHEN = ("before", "attention", "middle", "after")  # the order in which the steps of a block act


@dataclass
class MergingPass:
    """One pass of a tower: what is done in which block, and the rows as they are.

    Attributes:
        groups: where the views are not alike; ``kind``, of their rows; None where the tower packs.
        widen: whether all blocks give full width; ``rows``, what the one before was left with, where no row of that is theirs.
        heard: signals of the block under way, with a row per unit; ``pending``, the reductions carried out between its
            attention and MLP, each with the rows it was carried out on; ``bias`` (B, n), what is added to the logits of its
            rows; ``stream``, what the reductions made of the residual stream, ``branch``, what the MLP adds to that.
        notes: what methods noted, by their number; of views that are not alike, ``groups`` know.
        inside: the block under way; None: none is.
        windows: of that block, where the tower packs; ``given``, per block, the borders it would have without merging.
    """

    pipeline: Pipeline
    state: TowerState
    steps: dict[int, list[EncoderStep]]
    groups: list[Group]
    kind: Tensor | None
    widen: bool
    rows: Tensor | None = None
    heard: dict[Signal, Tensor] = field(default_factory=dict)
    notes: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    pending: list[tuple[Reduction, Tensor]] = field(default_factory=list)
    bias: Tensor | None = None
    stream: Tensor | None = None
    branch: Tensor | None = None
    inside: int | None = None
    windows: Windows | None = None
    given: list[Tensor] = field(default_factory=list)

    def asked_later(self, index: int, when: str, position: int) -> set[Signal]:
        """Signals that steps of block ``index`` ask for behind the one at ``position`` among them, which acts ``when``."""
        steps = self.steps.get(index, ())
        if len(steps) < 2:
            return set()
        done = WHEN.index(when), position
        return {
            need for i, (_, step, _) in enumerate(steps) if (WHEN.index(step.when), i) > done for need in step.needs
        }

    def shown(self, x: Tensor, block: int, own: EncoderStep) -> VisualTokens:
        """The rows ``x`` (B, n, D) as ``block`` shows them to the method of a step."""
        state = self.state
        return VisualTokens(
            features=state.units.mean(x),
            layout=state.layouts[0],
            stage="encoder",
            layer=block,
            source=state.source,
            size=state.size,
            signals={need: self.heard[need] for need in own.step.needs},
            notes=self.notes.get(own.number, {}),
            prefix=state.prefix,
            window=None if self.windows is None else self.windows.of_units,
            cell=state.source - state.whole_prefix,
            amount=own.step.amount,
        )
