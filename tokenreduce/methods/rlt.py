"""RLT: a patch of a video that did not change is not run again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.novelty import newer, on_grid, unit_values
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import in_range

IMAGENET = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class RLT(Method):
    """Drop every unit of a video that differs by ``threshold`` or less, on average, from the same place one step of time
    before: its last frame is held against the first frame there. The first step stays whole.

    Attributes:
        keep: ``auto``, as many as changed; with bounds ``auto:0.1-0.5``. A fraction or a count: the units that changed most,
            those of the first step first.
        threshold: tau, in the deviations ``deviation``: 0.1 is about 6 of 255.
        deviation: of pixel values between 0 and 1, per channel, in which changes are measured; those of ImageNet.

    Source: Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization", NeurIPS 2024,
        arXiv 2411.05222.
    Departures from the release: no length embedding, which takes training (``ImageTrace.run_lengths`` tells the lengths); a
        unit of several patches goes only as a whole; budgets are ours.
    """

    name = "rlt"
    title = "what did not change since"
    paper = "arXiv 2411.05222"
    stages = ("pixels",)
    looks_at = "pixels of neighbouring frames"
    media = ("video",)
    adapts = True

    keep: float | int | str = "auto"
    threshold: float = 0.1
    deviation: tuple[float, ...] = IMAGENET

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("threshold", self.threshold, 0, 100)
        if not isinstance(self.deviation, tuple) or not all(
            isinstance(x, (int, float)) and x > 0 for x in self.deviation
        ):
            raise ValueError(f"deviation={self.deviation!r}; allowed: a tuple of numbers above 0, one per channel")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("pixels", amount=facts.pixel_unit),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        frames = unit_values(tokens)
        first, last = (frames[:, :, :, :, at].flatten(2) for at in (0, -1))
        channels = frames.shape[3]
        if len(self.deviation) != channels:
            raise ValueError(
                f"deviation={self.deviation!r} is of {len(self.deviation)} channels; allowed: {channels}, as the pixels have"
            )
        scale = frames.new_tensor(self.deviation).view(-1, 1, 1).expand(frames.shape[2:4] + frames.shape[5:]).flatten()
        (before, cells), (after, _) = (on_grid(x / scale, tokens.layout, tokens.source) for x in (first, last))
        changed = change(before, after).flatten(1).gather(1, cells)
        return newer(changed, self.threshold, self.budget, self.positions)


def change(first: Tensor, last: Tensor) -> Tensor:
    """(B, T, h, w) mean absolute difference of ``last`` (B, T, h, w, D), the end of each step, from ``first``, the beginning of
    the step before; infinity in the first step."""
    moved = (last[:, 1:] - first[:, :-1]).abs().mean(dim=-1).nan_to_num(nan=torch.inf)
    return torch.cat([torch.full_like(last[:, :1, ..., 0], torch.inf), moved], dim=1)
