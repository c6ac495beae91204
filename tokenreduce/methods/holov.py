"""HoloV: share the budget over crops of the image, keep the most attended tokens of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.allotment import allot
from tokenreduce.kernels.rows import take_rows
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.tower_saliency import SCORES, Score, saliency, saliency_substitute
from tokenreduce.validation import choice, in_range, whole

SCALE = 1000  # of attention, against the spread of similarities


@dataclass(frozen=True, kw_only=True)
class HoloV(Method):
    """Cut the row of tokens into P crops; give each its share of the budget by its mean attention, plus a little for how
    unlike its tokens are; keep the most attended tokens inside each.

    Attributes:
        keep: fraction of N, or count per image, all its tiles together.
        crops: P, runs of the raster order; None: 16 per 576 tokens at 64 kept, in proportion to N / K, at least 1.
        alpha: weight of the spread of similarities, at least 0.
        score: attention of a token: ``cls``, of the [CLS] query; ``global_mean``, received from all queries; None: the
            first, or for towers without a [CLS] token the second, as the release does.
        overflow: what a crop gets beyond what it holds is shared among the others (``share``), or lost, with rows of zeros
            in its place (``zeros``, as released).
        output_order: ``raster``, or the ``reference`` order: crop by crop, the most attended first, ids renumbered.
        positions: policy of position ids in ``raster`` order.

    Source: Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
        NeurIPS 2025, arXiv 2510.02912.
    Departures from the release: exact counts; raster order; scores of a packed tower belong to their tokens (on Qwen the
        release mixes window and raster order); any number of images.
    """

    name = "holov"
    title = "a share for every crop, then attention"
    paper = "arXiv 2510.02912"
    stages = ("projector",)
    looks_at = "[CLS] attention of the feature block, cosine similarities within crops"
    sees = "image"

    crops: int | None = None
    alpha: float = 0.09
    score: Score | None = None
    overflow: Literal["share", "zeros"] = "share"
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("crops", self.crops, 1, ". The paper uses 16 for 576 tokens.", none=True)
        in_range("alpha", self.alpha, 0.0, math.inf)
        choice("score", self.score, SCORES)
        choice("overflow", self.overflow, ("share", "zeros"))
        choice("output_order", self.output_order, ("raster", "reference"))

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector", needs=(saliency(self.name, facts, facts.feature_block, self.score),)),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return saliency_substitute(facts, self.score)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        (attention,) = tokens.signals.values()
        n = tokens.num_tokens
        k = self.budget.count(n)
        crops = min(self.crops or max(1, int(1024 / 576 * n / k)), n)
        crop, capacity = runs(n, crops, attention.device)
        weight = crop_weights(tokens.features, attention, crop, capacity, self.alpha)
        count = allot(weight, k, capacity if self.overflow == "share" else None)
        at = crop.expand_as(attention)
        whole = (count >= capacity).gather(1, at)  # a crop that is kept whole stays in raster order
        place, rank = order_of(attention.float().masked_fill(whole, 0), crop)
        kept = rank < count.gather(1, at)
        chosen = place.masked_fill(~kept, n).sort(dim=1).values[:, :k]  # kept places first, in order
        lost = chosen == n
        taken = place.argsort(dim=1).gather(1, chosen.clamp_max(n - 1))
        score = attention.float()
        if self.overflow == "share":
            plan = Reduction.select(taken, n, score=score, positions=self.policy)
            return plan if self.output_order == "raster" else plan.reordered(taken)
        taken = taken.masked_fill(lost, -1)
        if self.output_order == "raster":
            taken = taken.masked_fill(lost, n).sort(dim=1).values.masked_fill(lost, -1)
        rows = torch.arange(k, device=taken.device).expand_as(taken)
        assign = torch.full((len(taken), n + 1), -1, device=taken.device).scatter(1, taken.masked_fill(lost, n), rows)
        features = take_rows(tokens.features, taken.clamp_min(0)) * ~lost[..., None]
        return Reduction(source=taken, assign=assign[:, :n], features=features, score=score, positions=self.policy)


def runs(n: int, crops: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N,) crop of each of ``n`` tokens and (P,) tokens of each of ``crops`` runs, the first ones a token longer."""
    short, longer = divmod(n, crops)
    capacity = torch.tensor([short + (p < longer) for p in range(crops)])
    crop = torch.repeat_interleave(torch.arange(crops), capacity)
    return crop.to(device, non_blocking=True), capacity.to(device, non_blocking=True)


def order_of(attention: Tensor, crop: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N) place of each token when sorted by crop and falling ``attention`` (B, N), and its rank within its crop."""
    order = attention.float().sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, crop[order].sort(dim=1, stable=True).indices)
    place = order.argsort(dim=1)
    first = torch.searchsorted(crop, crop)
    return place, place - first


def crop_weights(x: Tensor, attention: Tensor, crop: Tensor, capacity: Tensor, alpha: float) -> Tensor:
    """(B, P) score of each crop: mean of 1000 a plus ``alpha`` times the spread of similarities, scaled to its size.

    ``x`` (B, N, D), ``attention`` (B, N), ``crop`` (N,) ascending. A crop of one token scores its attention alone.
    """
    batch, n, crops = len(x), len(crop), len(capacity)
    longest = -(-n // crops)
    start = capacity.cumsum(0) - capacity
    slot = crop * longest + torch.arange(n, device=crop.device) - start[crop]

    def by_crop(value: Tensor) -> Tensor:
        padded = value.new_zeros(batch, crops * longest, *value.shape[2:])
        return padded.index_copy(1, slot, value).unflatten(1, (crops, longest))

    unit, a = by_crop(x.detach().float()), by_crop(attention.float())
    unit = unit / (torch.linalg.vector_norm(unit, dim=-1, keepdim=True) + 1e-6)
    real = by_crop(torch.ones_like(attention, dtype=torch.bool))
    size = capacity.float()
    others = (size - 1).clamp_min(1)[:, None]
    similar = unit @ unit.mT
    similar.diagonal(dim1=-2, dim2=-1).zero_()
    mean = similar.sum(dim=-1) / others
    spread = ((similar - mean[..., None]).square() * real[..., None, :]).sum(dim=-1) / others * real
    scaled = SCALE * a
    gain = (scaled.abs().sum(-1) / size) / (spread.abs().sum(-1) / size + 1e-6)
    score = (scaled + alpha * gain[..., None] * spread).sum(-1) / size
    return torch.where(capacity == 1, a.sum(-1), score)
