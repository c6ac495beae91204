"""FlashVID: of every frame a few tokens that matter and differ; all others along trees of look-alikes through time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels.greedy_selection import max_min_selection
from tokenreduce.kernels.top_k import top_k
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.redundancy_trees import Compressed, cuts, gathered, grown, merging, parents, thinned
from tokenreduce.schedules import scaled_layers
from tokenreduce.signals import AttentionReceived, LastQueryAttention
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range, whole
from tokenreduce.video_segments import neighbour_cosines, segments, shared_within
from tokenreduce.whole_frames import by_frame, padded

PICKS = ("attn_div_v2", "attn_div", "div", "attn")


@dataclass(frozen=True, kw_only=True)
class FlashVID(Method):
    """Cut a video into segments; in every frame pick tokens that are attended to and far from each other; join every other
    token to the most similar one of the frame before and thin what is left by density clusters; drop most tokens again late
    in the language model.

    Attributes:
        keep: fraction R of the T * N tokens of a video that a decoder layer takes in, averaged over the layers, or such a count.
        alpha: share in (0, 1] of a frame's tokens that are picked.
        picks: what they are ranked by: distance times attention times likeness to the segment (``attn_div_v2``), without the
            last, ``div`` by distance alone, ``attn`` by attention alone.
        tau: cosine above which a token joins one of the frame before.
        segment_threshold, least_segments: cosine of neighbouring frames below which a cut is made, None: none is; and how many
            segments there are at least.
        count: what a chain is divided by: one and its ``direct`` children, as released, or the ``subtree``, a plain mean.
        exact: fill the budget exactly; False rounds each frame up, as released.
        layer: decoder layer (0-based) at whose entry tokens are dropped; None scales 20 of 28 to the depth.
        inner_keep: fraction in (0, 1] kept there, which pays for more tokens before; 1.0 leaves the inner step out.

    Source: "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging", ICLR
        2026, arXiv 2602.08024.
    Departures from the release: exact counts; no token is picked twice or both picked and clustered; no random jitter.
    """

    name = "flashvid"
    title = "video: trees of look-alikes through time"
    paper = "arXiv 2602.08024"
    media = ("video",)
    stages = ("projector", "llm")
    looks_at = "attention received in the last block, cosines within and between frames, last row of decoder layer K-1"
    counts_at = "average"

    keep: float | int = 0.25
    alpha: float = 0.7
    picks: Literal["attn_div_v2", "attn_div", "div", "attn"] = "attn_div_v2"
    tau: float = 0.8
    segment_threshold: float | None = 0.9
    least_segments: int = 8
    count: Literal["direct", "subtree"] = "direct"
    exact: bool = True
    layer: int | None = None
    inner_keep: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("picks", self.picks, PICKS)
        choice("count", self.count, ("direct", "subtree"))
        in_range("alpha", self.alpha, 1e-6, 1.0)
        in_range("tau", self.tau, -1.0, 1.0)
        if self.segment_threshold is not None:
            in_range("segment_threshold", self.segment_threshold, -1.0, 1.0)
        in_range("inner_keep", self.inner_keep, 1e-6, 1.0)
        whole("least_segments", self.least_segments, 1, ". The paper uses 8.")
        whole("layer", self.layer, 1, ". The paper uses 20 of 28.", none=True)

    def most(self, n: int) -> int:
        return super().most(n) if self.exact else n

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        depth, score = facts.decoder_depth, AttentionReceived(facts.tower_depth - 1)
        if self.inner_keep == 1.0:
            return (Step("projector", needs=(score,), amount=(0, 0)),)
        layer = max(1, *scaled_layers((20,), 28, depth)) if self.layer is None else self.layer
        if not 1 <= layer < depth:
            raise ValueError(
                f"layer={layer} is outside [1, {depth - 1}], the decoder layers that follow another; pass one of them, or "
                "inner_keep=1.0 to leave the inner step out"
            )
        outer = Step("projector", needs=(score,), amount=(layer, depth))
        return (outer, Step("llm", layer, (LastQueryAttention(layer - 1),), (layer, depth)))

    def entering(self, n: int, layer: int, depth: int) -> int:
        """Tokens of ``n`` that enter the language model, so that its layers take in ``keep`` on average."""
        share = 1.0 if not depth else (layer + self.inner_keep * (depth - layer)) / depth
        goal = self.keep * n if isinstance(self.keep, float) else self.keep
        return min(n, max(1, round(goal / share)))

    def reduce(self, tokens: VisualTokens) -> Reduction:
        (score,) = tokens.signals.values()
        layer, depth = tokens.amount
        if tokens.stage == "llm":
            return Reduction.top(score, self.inner(tokens, layer, depth), positions=self.positions)
        x = by_frame(tokens, self.name)
        frames, n = x.shape[1:3]
        if self.exact:
            share, more = divmod(self.entering(frames * n, layer, depth), frames)
            budget = torch.full((frames,), share, device=x.device) + (torch.arange(frames, device=x.device) < more)
        else:
            budget = torch.full((frames,), math.ceil(self.entering(frames * n, layer, depth) / frames), device=x.device)
        made = [self.compressed(one, a, budget) for one, a in zip(x, score.unflatten(1, (frames, n)))]
        rows = [(one.assign, one.source, one.rows.to(x.dtype)) for one in made]
        return padded(rows, score=score, positions=self.positions)

    def inner(self, tokens: VisualTokens, layer: int, depth: int) -> int:
        if not self.exact:
            return math.ceil(tokens.num_tokens * self.inner_keep)
        whole = tokens.layout.num_tokens
        goal = self.keep * whole if isinstance(self.keep, float) else min(self.keep, whole)
        left = round((goal * depth - layer * tokens.num_tokens) / (depth - layer))
        return min(max(left, 1), tokens.num_tokens)

    def compressed(self, x: Tensor, attention: Tensor, budget: Tensor, *, released: bool = False) -> Compressed:
        """What becomes of a video ``x`` (T, N, D) with ``attention`` (T, N) whose frames may keep ``budget`` (T,) tokens.

        ``released``: a segment of one frame clusters the picked tokens, too, so that a place may come out twice.
        """
        frames, n, _ = x.shape
        x = x.detach().float()
        segment = self.segment(x)
        picks = torch.ceil(budget * self.alpha).long()
        picked = self.picked(x, attention, segment, picks)
        first = F.pad(segment.diff() > 0, (1, 0), value=True)
        size = torch.bincount(segment)
        total = torch.zeros_like(size).index_add_(0, segment, budget)
        best, parent = parents(x, picked, first)
        joins = merging(best, segment, self.tau, total) & (size > 1)[segment][:, None]
        trees = grown(x, joins, parent, self.count)
        alone = (size == 1)[segment][:, None] & released
        there = ~joins & (~picked | alone)
        rest = total - torch.zeros_like(size).index_add_(0, segment, picks)
        left = there.sum(dim=1)
        if self.exact and not released:
            centres = shared_within(segment, left, rest)
        else:
            wanted = rest.double() / torch.zeros_like(size).index_add_(0, segment, left).clamp_min(1).double()
            centres = torch.minimum(torch.ceil(left * wanted[segment]).long(), left)
        joined = thinned(trees.rows.view(frames, n, -1), there, centres)
        return gathered(x, picked, trees.root, trees.rows, joined)

    def segment(self, x: Tensor) -> Tensor:
        """(T,) long, the segment of each frame of ``x`` (T, N, D)."""
        if self.segment_threshold is None:
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        natural, added = cuts(neighbour_cosines(x.mean(dim=1)), self.segment_threshold, self.least_segments)
        return segments(natural | added)

    def picked(self, x: Tensor, attention: Tensor, segment: Tensor, count: Tensor) -> Tensor:
        """(T, N) bool, the ``count`` (T,) tokens of every frame that are kept as they are."""
        k = int(count.max())
        if self.picks == "attn":
            order = top_k(attention, k)
        else:
            weight = torch.ones_like(attention) if self.picks == "div" else attention.float()
            if self.picks == "attn_div_v2":
                size = torch.bincount(segment)
                event = torch.zeros(len(size), x.shape[2], device=x.device).index_add_(0, segment, x.mean(dim=1))
                weight = weight * (x @ (event / size[:, None])[segment][..., None])[..., 0]
            order = max_min_selection(x, k, weight=weight.clamp_min(0))
        taken = torch.arange(k, device=x.device) < count[:, None]
        return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device).scatter(1, order, taken)
