"""FastVID: salient tokens of every frame, and density peaks of regular frames that absorb the rest of their segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.anchor_merging import absorbed, shares
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range, whole
from tokenreduce.video_segments import lowest, neighbour_cosines, segments
from tokenreduce.whole_frames import by_frame, padded


@dataclass(frozen=True, kw_only=True)
class FastVID(Method):
    """Cut a video where neighbouring frames differ; keep the salient tokens of every frame; of every fourth frame of a segment,
    counted from its end, take density peaks, and average into them what else resembles them in the segment.

    Attributes:
        keep: fraction of the T * N tokens of a video, or count per video.
        tau: cosine of neighbouring frames below which a cut is made; ``least_segments``: cuts at the lowest ones in any case.
        same: cosine from which a frame is taken for a repetition of the next one of its segment and keeps nothing by itself;
            None: no frame is.
        context: share in [0, 1] of the budget that goes to density peaks.
        period: frames of a segment from one that gives peaks to the next.
        beta: least weight in [0, 1] of a peak against the mean of what it absorbs.
        neighbours: k of the density.
        variant: ``parallel``, as released for LLaVA-OneVision, where peaks are among what is averaged; or ``sequential``, as for
            LLaVA-Video and Qwen2.5-VL, where they are not among their own.

    Source: Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025, arXiv 2503.11187.
    Departures from the release: frames are compared by their mean token, and saliency is attention received, since models have
        lost the pooling head; exact counts; no random jitter; any budget, frames and videos.
    """

    name = "fastvid"
    title = "video: salient tokens and density peaks"
    paper = "arXiv 2503.11187"
    media = ("video",)
    stages = ("projector",)
    looks_at = "mean tokens of frames, attention received in the feature block, distances in a frame"

    keep: float | int = 0.25
    tau: float = 0.9
    least_segments: int = 8
    same: float | None = None
    context: float = 0.4
    period: int = 4
    beta: float = 0.6
    neighbours: int = 4
    variant: Literal["parallel", "sequential"] = "parallel"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("variant", self.variant, ("parallel", "sequential"))
        in_range("tau", self.tau, -1.0, 1.0)
        in_range("context", self.context, 0.0, 1.0)
        in_range("beta", self.beta, 0.0, 1.0)
        if self.same is not None:
            in_range("same", self.same, -1.0, 1.0)
        for argument, hint in (("least_segments", 8), ("period", 4), ("neighbours", 4)):
            whole(argument, getattr(self, argument), 1, f". The paper uses {hint}.")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector", needs=(AttentionReceived(facts.feature_block),)),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return (
            "attention received and mean tokens in place of the attention-pooling head of SigLIP, which models leave out",
        )

    def reduce(self, tokens: VisualTokens) -> Reduction:
        (score,) = tokens.signals.values()
        x = by_frame(tokens, self.name)
        frames, n = x.shape[1:3]
        share, more = divmod(self.budget.count(frames * n), frames)
        budget = torch.full((frames,), share, device=x.device) + (torch.arange(frames, device=x.device) < more)
        made = [self.video(one, a, budget) for one, a in zip(x, score.unflatten(1, (frames, n)))]
        return padded(made, score=score, positions=self.positions)

    def segmented(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """(T,) segment of each of the frames ``frame`` (T, C), and (T,) bool: it repeats none that follows in its segment."""
        alike = neighbour_cosines(frame)
        segment = segments(lowest(alike, self.least_segments - 1) | (alike < self.tau))
        if self.same is None:
            return segment, torch.ones_like(segment, dtype=torch.bool)
        repeats = (alike >= self.same) & (segment.diff() == 0)
        return segment, F.pad(~repeats, (0, 1), value=True)

    def video(self, x: Tensor, saliency: Tensor, budget: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row (T * N,), source (K,) and features (K, D) of a video ``x`` (T, N, D) whose frames may keep ``budget`` (T,)."""
        n = x.shape[1]
        segment, valid = self.segmented(x.detach().float().mean(dim=1))
        given = shares(budget, segment, valid, n, self.context, self.period)
        made = absorbed(
            x.detach(), saliency, segment, given, neighbours=self.neighbours, beta=self.beta, sources=self.variant
        )
        kept = (made.salient | made.centre).flatten()
        source = kept.nonzero().flatten()
        number = kept.cumsum(dim=0) - 1
        own = torch.where(
            made.salient.flatten()[source][:, None], x.flatten(0, 1)[source], made.rows[source].to(x.dtype)
        )
        joins = torch.where(made.salient.flatten(), torch.arange(len(kept), device=x.device), made.joins.flatten())
        return torch.where(joins < 0, -1, number[joins.clamp_min(0)]), source, own
