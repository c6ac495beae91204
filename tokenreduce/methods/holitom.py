"""HoliTom: what stands still in a video is kept once, what moves is kept where it is attended to, then folded once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.kernels.density_peaks import density_peaks
from tokenreduce.kernels.temporal_segmentation import MAX_WINDOW, temporal_segmentation
from tokenreduce.kernels.temporal_similarity import temporal_similarity
from tokenreduce.kernels.top_k import top_k
from tokenreduce.matching import fold
from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.reduction import Reduction
from tokenreduce.segment_stream import SegmentStream
from tokenreduce.signals import AttentionReceived, LastQueryAttention
from tokenreduce.temporal_redundancy import allot, stands
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded
from tokenreduce.validation import choice, fraction, in_range, whole
from tokenreduce.whole_frames import per_frame, stacked

#: 18 of 28 layers in the paper's 7B setting
INNER_DEPTH = 0.643


@dataclass(frozen=True, kw_only=True)
class HoliTom(Method):
    """Cut a video into segments in which much stands still; in each, average what stands still over the frames and
    cluster it, and keep the most attended of what moves. Inside the language model, once, fold the tokens that the last
    prompt token ignores into the ones they resemble. Images pass through unreduced.

    Attributes:
        keep: fraction r of the T * N tokens of a video, or count per video, at the entry of the language model.
            ``keep=1.0`` turns the whole method off.
        tau: cosine in [-1, 1] above which a place stands still; published with 0.8, and with 0.65 at keep=0.1.
        beta: weight in [0, 1] of a cluster's centre against the mean of its members.
        plain_mean: average centre and members alike instead.
        neighbours: k of the density, at least 1.
        max_window: frames of the longest segment.
        ratio: spread the budget over the whole ``video`` (the paper), or give each ``segment`` its own share, which is all
            a stream can know.
        exact: fill the budget exactly by largest remainder; False rounds each part as released, which keeps a little more.
        reference_k: limit k to the number of clusters, as released; with one cluster all densities are equal then.
        output_order: ``raster``, or the released ``reference`` order, in each segment the clusters first.
        layer: decoder layer (0-based) at whose entry tokens are folded, at least 1; None scales 18 of 28 to the depth.
        inner_keep: fraction in (0, 1] kept there (1 - R); 1.0 leaves the inner step out.
        positions: the release renumbers at the entry (``renumber``); the default keeps position ids. The inner step
            keeps them always.

    Source: Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025,
        arXiv 2505.21334.
    Departures from the release: exact counts; k is limited by the number of tokens only; no random jitter, ties go to
        the lowest index; the layer that is listened to stays causal; at least one token of a video is left; row newlines
        are neither counted nor folded. See the method's page.
    """

    name = "holitom"
    title = "video: merge what stands still"
    paper = "arXiv 2505.21334"
    media = ("video",)
    stages = ("projector", "llm")
    looks_at = "change between frames, attention received in the feature block, last row of decoder layer K-1"

    keep: float | int = 0.25
    tau: float = 0.8
    beta: float = 0.6
    plain_mean: bool = False
    neighbours: int = 7
    max_window: int = MAX_WINDOW
    ratio: Literal["video", "segment"] = "video"
    exact: bool = True
    reference_k: bool = False
    output_order: Literal["raster", "reference"] = "raster"
    layer: int | None = None
    inner_keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("tau", self.tau, -1.0, 1.0)
        in_range("beta", self.beta, 0.0, 1.0)
        choice("ratio", self.ratio, ("video", "segment"))
        choice("output_order", self.output_order, ("raster", "reference"))
        for argument, low, advice in (("neighbours", 1, 7), ("max_window", 1, MAX_WINDOW), ("layer", 1, 18)):
            whole(argument, getattr(self, argument), low, f". The paper uses {advice}.", none=argument == "layer")
        left_out = "; 1.0 leaves the inner step out. The paper uses 0.5."
        fraction("inner_keep", self.inner_keep, f", the range of a fraction kept{left_out}")
        if self.ratio == "segment" and isinstance(self.keep, int):
            raise ValueError(
                f"keep={self.keep} tokens per video cannot be spread without knowing the whole video; with "
                "ratio='segment' and for streams give a fraction, such as keep=0.25"
            )

    def is_identity(self, n: int) -> bool:
        return self.budget.is_full

    def most(self, n: int) -> int:
        return super().most(n) if self.exact else n  # rounding as released keeps a little more

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        outer = Step("projector", needs=(AttentionReceived(facts.feature_block),))
        if self.inner_keep == 1.0:
            return (outer,)
        depth = facts.decoder_depth
        layer = min(max(1, round(INNER_DEPTH * depth)), depth - 1) if self.layer is None else self.layer
        if not 1 <= layer < depth:
            raise ValueError(
                f"layer={layer} is outside [1, {depth - 1}], the decoder layers that follow another; pass one of them, or "
                "inner_keep=1.0 to leave the inner step out"
            )
        return (outer, Step("llm", layer=layer, needs=(LastQueryAttention(layer - 1),)))

    def reduce(self, tokens: VisualTokens) -> Reduction:
        whole = tokens.layout.num_tokens
        if tokens.layout.medium == "image" or self.budget.count(whole) >= whole:
            return Reduction.identity(tokens)
        (score,) = tokens.signals.values()
        if tokens.stage == "llm":
            return fold(tokens.features, score, Budget(self.inner_keep).count(tokens.num_tokens))
        n = per_frame(tokens, self.name)
        shape = (tokens.layout.frames, n)
        plans = [self._video(x, a) for x, a in zip(tokens.features.unflatten(1, shape), score.unflatten(1, shape))]
        return stacked(plans, score=score, positions=self.positions)

    def stream(self, limit: int = 64) -> SegmentStream:
        """The outer part for a video that arrives frame by frame; holds at most ``limit`` frames.

        Each segment gets its own share of the budget: the tokens equal those of ``HoliTom(ratio="segment")`` on the
        whole video.
        """
        if isinstance(self.keep, int):
            raise ValueError(
                f"keep={self.keep} tokens per video cannot be spread over a stream of unknown length; give a fraction, "
                "such as keep=0.25"
            )
        return SegmentStream(self._alone, self.tau, self.max_window, limit)

    def _alone(self, x: Tensor, score: Tensor, still: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``_video``, for one segment ``x`` (T, N, D) whose places are ``still`` (T - 1, N) between its frames."""
        held = stands(still, 0, len(x))
        (share,) = allot([(len(x), int(held.sum()))], x.shape[1], self.budget, exact=self.exact)
        return self._segment(x, score, held, share)

    def _video(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row (T * N,), source (K,) and weight (T * N,) of the tokens ``x`` (T, N, D) of one video."""
        n = x.shape[1]
        still = temporal_similarity(x) > self.tau
        held = still.cpu()
        segments, _ = temporal_segmentation(held, self.max_window)
        spans = [(stop - start, int(stands(held, start, stop).sum())) for start, stop in segments]
        if self.ratio == "video":
            shares = allot(spans, n, self.budget, exact=self.exact)
        else:
            shares = [share for span in spans for share in allot([span], n, self.budget, exact=self.exact)]
        rows, sources, weights, before = [], [], [], 0
        for (start, stop), share in zip(segments, shares):
            assign, source, weight = self._segment(x[start:stop], score[start:stop], stands(still, start, stop), share)
            rows.append(torch.where(assign >= 0, assign + before, assign))
            sources.append(source + start * n)
            weights.append(weight)
            before += len(source)
        return torch.cat(rows), torch.cat(sources), torch.cat(weights)

    def _segment(self, x: Tensor, score: Tensor, still: Tensor, share: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The same for one segment ``x`` (T, N, D): ``share[0]`` clusters of what is ``still`` (N,), and of the rest of
        frame t the ``share[1 + t]`` most attended tokens.
        """
        frames, n, _ = x.shape
        clusters, device = share[0], x.device
        assign = torch.full((frames, n), -1, device=device)
        weight = torch.ones(frames, n, device=device)
        sources = []
        if clusters:
            static = still.nonzero().flatten()
            mean = x.mean(dim=0, dtype=torch.float32)[static]
            k = min(self.neighbours, clusters) if self.reference_k else self.neighbours
            centre, _, group = density_peaks(mean[None], clusters, k)
            assign[:, static] = group[0]
            if not self.plain_mean:
                members = torch.bincount(group[0], minlength=clusters) - 1
                part = ((1 - self.beta) / members.clamp_min(1))[group[0]]
                part[centre[0]] = torch.where(members > 0, self.beta, 1.0)
                weight[:, static] = part
            sources.append(static[centre[0]])
        moving = (~still).nonzero().flatten()
        if any(share[1:]):
            room = uploaded(share[1:], device)[:, None]
            order = top_k(score[:, moving], len(moving))
            place = torch.arange(len(moving), device=device).expand_as(order)
            kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, place < room)
            cell = torch.arange(frames * n, device=device).view(frames, n)[:, moving][kept]
            assign.view(-1)[cell] = torch.arange(len(cell), device=device) + clusters
            sources.append(cell)
        if not sources:
            return assign.flatten(), torch.zeros(0, dtype=torch.long, device=device), weight.flatten()
        source = torch.cat(sources)
        if self.output_order == "raster":
            source, order = source.sort()
            assign = torch.where(assign >= 0, order.argsort()[assign.clamp_min(0)], -1)
        return assign.flatten(), source, weight.flatten()
