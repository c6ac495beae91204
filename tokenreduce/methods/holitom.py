"""HoliTom: what stands still in a video is kept once, what moves is kept where it is attended to, then folded once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.kernels.density_peaks import density_peaks
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.temporal_segmentation import MAX_WINDOW, temporal_segmentation
from tokenreduce.kernels.temporal_similarity import temporal_similarity
from tokenreduce.kernels.top_k import top_k
from tokenreduce.matching import fold
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.segment_stream import SegmentStream
from tokenreduce.signals import AttentionReceived, LastQueryAttention
from tokenreduce.temporal_redundancy import allot, standing, stands
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

    def _segment(self, x: Tensor, score: Tensor, held: Tensor, share: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The same where (N,) places are ``held``; as ``_segments``, for one segment."""
        return self._segments(x, score, held[None], [(len(x), int(held.sum()))], [share])

    def _video(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row (T * N,), source (K,) and weight (T * N,) of the tokens ``x`` (T, N, D) of one video."""
        n = x.shape[1]
        still = (temporal_similarity(x) > self.tau).cpu()
        segments, _ = temporal_segmentation(still, self.max_window)
        held = standing(still, segments, n)
        spans = [(stop - start, static) for (start, stop), static in zip(segments, held.sum(dim=1).tolist())]
        if self.ratio == "video":
            shares = allot(spans, n, self.budget, exact=self.exact)
        else:
            shares = [share for span in spans for share in allot([span], n, self.budget, exact=self.exact)]
        return self._segments(x, score, held.to(x.device), spans, shares)

    def _segments(
        self, x: Tensor, score: Tensor, held: Tensor, spans: Sequence[tuple[int, int]], shares: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for segments of ``spans``, frames and how many places are ``held`` (S, N): ``share[0]`` clusters of these in
        each, and of the rest of its frame t the ``share[1 + t]`` most attended tokens.
        """
        frames, n, _ = x.shape
        device, size = x.device, uploaded([span[0] for span in spans], x.device)
        segment = torch.arange(len(spans), device=device).repeat_interleave(size, output_size=frames)
        first = (size.cumsum(dim=0) - size)[segment][:, None] * n
        cell = torch.arange(frames * n, device=device).view(frames, n)
        moving = ~held[segment]
        room = uploaded([count for share in shares for count in share[1:]], device)[:, None]
        order = top_k(score.float().masked_fill(~moving, -torch.inf), n)
        kept = torch.zeros_like(moving).scatter_(1, order, torch.arange(n, device=device) < room) & moving
        joined, part = self._clusters(x, segment, held, spans, [share[0] for share in shares])
        target = torch.where(joined[segment] < 0, -1, joined[segment] + first)
        target = torch.where(moving, torch.where(kept, cell, -1), target)
        weight = torch.where(moving, 1.0, part[segment])
        source = (target == cell).flatten().nonzero().flatten()  # each centre in the first frame of its segment
        if self.output_order == "reference":
            late = segment[source // n] * 2 + moving.flatten()[source]
            source = source[late.sort(stable=True).indices]
        row = torch.zeros(frames * n, dtype=torch.long, device=device)
        row[source] = torch.arange(len(source), device=device)
        return torch.where(target < 0, -1, row[target.clamp_min(0)]).flatten(), source, weight.flatten()

    def _clusters(
        self, x: Tensor, segment: Tensor, held: Tensor, spans: Sequence[tuple[int, int]], clusters: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """(S, N) long, the place of the centre that each place joins which is ``held`` (S, N), -1: none; and (S, N) its weight.

        Places are averaged over the frames of their ``segment`` (T,) first; every segment has its number of ``clusters``.
        """
        count, n = held.shape
        joined, part = torch.full((count, n), -1, device=x.device), torch.ones(count, n, device=x.device)
        some = sorted((i for i, own in enumerate(clusters) if own), key=lambda i: spans[i][1])  # alike together
        if not some:
            return joined, part
        own, wanted = uploaded(some, x.device), [clusters[i] for i in some]
        mean = torch.zeros(count, n, x.shape[2], device=x.device).index_add_(0, segment, x.float())[own]
        mean /= uploaded([spans[i][0] for i in some], x.device)[:, None, None]
        sizes = [spans[i][1] for i in some]
        place = (~held[own]).to(torch.uint8).sort(dim=1, stable=True).indices[:, : max(sizes)]
        k = [min(self.neighbours, m) if self.reference_k else self.neighbours for m in wanted]
        centre, _, group = density_peaks(take_rows(mean, place), wanted, k, lengths=sizes)
        there = torch.arange(max(sizes), device=x.device) < uploaded(sizes, x.device)[:, None]
        target = place.gather(1, centre.gather(1, group))
        joined[own] = joined[own].scatter(1, place, torch.where(there, target, -1))
        if not self.plain_mean:
            members = torch.zeros_like(centre).scatter_add_(1, group, there.long()) - 1
            share = ((1 - self.beta) / members.clamp_min(1)).gather(1, group)
            share = torch.where(target == place, torch.where(members > 0, self.beta, 1.0).gather(1, group), share)
            part[own] = part[own].scatter(1, place, share)
        return joined, part
