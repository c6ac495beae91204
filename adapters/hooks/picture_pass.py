"""One pass of a prompt's pictures through the stages: what methods are shown of them, and what was decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.sequence_packing import LayerPackings, Packing
from tokenreduce.groups import ImageGroup
from tokenreduce.joint_space import Question
from tokenreduce.kernels.fingerprint import combine
from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import take_rows
from tokenreduce.pipeline import Pipeline
from tokenreduce.projection import Projector
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ProjectorInput, Signal
from tokenreduce.tokens import Rows, Stage


class PicturePass:
    """What methods are shown of the pictures of a prompt, wherever these join the text, and what they decided.

    Attributes:
        packings: what is left of the sequence that holds the pictures.
        groups: the images of this chunk as they stand now; empty for decode steps and text.
        visual: (B, L) bool on the CPU, visual columns of this chunk.
        offset: length of the sequence before this chunk, as the caller counts it.
        repeat: rows per encoded sample (beams).
        encoding: tells what encoding the images of this chunk cost.
        tower_values: signals of the towers, per encoded picture; ``behind``, the encoded pictures behind each image.
        project: makes features of rows that enter the projector.
        decisions: the reductions carried out so far; ``recalled``, those of an earlier pass over the same prompt.
        beside: by first layer, (B, W, E) what is added to the hidden states in front of the layers ``joined_at``, in order.
        questions: what each picture's sample asks, as the caller says; None: not said.
        hidden: what is being shortened, (B, W, D), and the slot in it of each column, (B, L); None: columns are slots.
    """

    def __init__(self, pipeline: Pipeline, packing: Packing, visual: Tensor, offset: int) -> None:
        self.pipeline = pipeline
        self.packings = LayerPackings(packing, visual.sum(dim=1).tolist())
        self.length_in = list(packing.counts)
        self.groups: list[ImageGroup] = []
        self.visual = visual
        self.offset = offset
        self.repeat = 1
        self.encoding: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self.tower_values: dict[Signal, list[Tensor | None]] = {}
        self.project: Projector = Projector.none()
        self.behind: list[tuple[int, ...]] = []
        self.beside: dict[int, Tensor] = {}
        self.joined_at: tuple[int, ...] = ()
        self.questions: list[str] | None = None
        self.hidden: tuple[Tensor, Tensor | None] | None = None
        self.decisions: dict[tuple[Stage, int | None], list[Reduction]] = {}
        self.recalled: dict[tuple[Stage, int | None], list[Reduction]] = {}

    @property
    def rows(self) -> int:
        """Rows of the decoder."""
        return len(self.length_in)

    @property
    def samples(self) -> int:
        """Samples of the call, each of which has as many rows, such as beams."""
        return self.rows // self.repeat

    def look(self, signal: Signal, group: ImageGroup) -> Any:
        """The value of ``signal``, of a tower, for the current tokens, views or images of ``group``, as its ``axis`` says."""
        if isinstance(signal, ProjectorInput) and not self.projector(group).exact:
            assert group.features is not None
            return group.features
        if isinstance(signal, Question):
            if self.questions is None:
                raise ValueError(
                    f"{signal.space} is to tell what a picture is asked, which only its words do: say them, as in "
                    "model.generate(**inputs, question=['What is on the table?']), one for all samples or one for each; "
                    "or with tr.question(model, texts): ..."
                )
            return Rows.of(signal.space.read([self.questions[m] for m in group.members]), group.seats.device)
        behind = [[self._tower_value(signal, i) for i in self.behind[m]] for m in group.members]
        if signal.axis == "picture":
            value = torch.stack([x[0] if len(x) == 1 else combine(torch.stack(x)[None])[0] for x in behind])
            return value.to(group.seats.device)
        value = torch.stack([x[0] if len(x) == 1 else torch.cat(x) for x in behind]).to(group.seats.device)
        if signal.axis == "view" or not group.history:
            return value
        channels = value.unsqueeze(-1) if value.ndim == 2 else value
        own = take_rows(channels, group.source.clamp_min(0))
        # a summary token sits nowhere: it has the mean of the tokens it stands for
        mean = group_mean(channels, group.assign, group.num_tokens)
        return torch.where((group.source < 0)[..., None], mean, own).view(*own.shape[:2], *value.shape[2:])

    def _tower_value(self, signal: Signal, picture: int) -> Tensor:
        value = self.tower_values[signal][picture]
        assert value is not None, "only what enters the projector can lack"
        return value

    def projector(self, group: ImageGroup) -> Projector:
        rows = self.tower_values[ProjectorInput()]
        whole = all(rows[i] is not None for m in group.members for i in self.behind[m])
        return self.project if whole else Projector.none()

    def decided(self, stage: Stage, layer: int | None) -> list[Reduction] | None:
        """What was decided at a place before, in this pass or in an earlier one over the same prompt; None: nothing."""
        return self.decisions.get((stage, layer)) or self.recalled.get((stage, layer))

    def run(self, stage: Stage, layer: int | None, groups: list[ImageGroup]) -> tuple[list[ImageGroup], bool]:
        """Carry out the steps of a place, as decided before for this prompt or by asking the methods."""
        after, done, changed = self.pipeline.run(stage, layer, groups, self, self.decided(stage, layer))
        self.decisions[stage, layer] = done
        self.hidden = None
        return after, changed
