"""SparseVLM: words that look at the image rank its tokens, layer by layer; part of what is dropped lives on in means."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from tokenreduce.by_count import by_count
from tokenreduce.matching import ordered
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import scaled_layers
from tokenreduce.signals import AttentionRank, CorrectedAttention, Hidden, Text, TextAttention
from tokenreduce.text_raters import RANK, by_rank, check_rank, raters, reached, text_score, with_means
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import ascending, at_most, choice, in_range, is_numbers, whole

ROLES = ("dropped", "kept", "recycled")
#: decoder layers of 32 after which tokens are dropped; where the rank of attention says how many are kept, the second
LAYERS, RANK_LAYERS = (2, 6, 15), (2, 6, 15, 19)


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Method):
    """Once, choose the words of the text whose embeddings are close to the image's (raters); after three decoder layers keep
    the visual tokens that the raters attend to most, and put the best of the others together in a few means.

    Attributes:
        keep: visual tokens in a decoder layer, averaged over the layers as the paper counts them (a pruning layer by its
            shorter output): a fraction of N, or a count per image. ``auto``, with bounds ``auto:16-128``: after each pruning
            layer as many as ``rank`` says, the rule of the first release.
        layers: decoder layers (0-based) after which tokens are dropped; None scales 2, 6, 15 of 32 (and 19, for ``auto``).
        rank: of ``auto``, scale and bias: ``int(scale * r + bias)`` are kept, r the rank of what raters pay to visual tokens;
            all where r is their number. None: (13.5, 0), published for 192 of 576; (9, 6) for 128, (0.8, 0) for 64.
        counts: tokens kept after each of them, means not counted, in place of ``keep``; None: published for 192, 128, 96 and
            64 of 576, otherwise those for 192, scaled.
        version: 1; or 2 (SparseVLM+): attention is divided by what the distance of two positions alone explains, and counted in
            the heads where most is left; nothing is recycled, and other counts were published.
        heads: of version 2, the heads that count; None: 14, as released for 28 heads, or half of fewer than 28.
        least: of version 2, what attention is divided by at least, 1 at distance 0; None: the released formula, which changes
            its sign 1,707 positions away (128 channels, base 10,000).
        raters: words that may rate: ``after`` the image, as released (template words often do), or ``all`` of the prompt.
        recycle: whether dropped tokens are put together; None: in version 1.
        output_order: ``raster``, each mean where its cluster's centre was; or the released ``reference`` order, means behind
            all others, by falling score, renumbered.
        positions: the release renumbers (``renumber``); the default keeps position ids.

    Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
        arXiv 2410.04417, section 3; "SparseVLM+: Visual Token Sparsification with Improved Text-Visual Attention Pattern",
        2025; counts and clusters as in the authors' code.
    Departures from the release: any batch, several images, each with raters of its own; layers scale to any depth; of equal
        densities the lower index is denser (the release draws); position ids are kept.
    """

    name = "sparsevlm"
    title = "what the raters among the words attend to, the rest recycled"
    paper = "arXiv 2410.04417"
    stages = ("projector", "llm")
    looks_at = "embeddings of text and image, attention of the raters"
    sees = "image"
    counts_at = "output_average"
    adapts = True

    keep: float | int | str = 1 / 3
    layers: tuple[int, ...] | None = None
    rank: tuple[float, float] | None = None
    counts: tuple[int, ...] | None = None
    raters: Literal["after", "all"] = "after"
    recycle: bool | None = None
    version: Literal[1, 2] = 1
    heads: int | None = None
    least: float | None = 0.05
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("raters", self.raters, ("after", "all"))
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("version", self.version, (1, 2))
        if self.least is not None:
            in_range("least", self.least, 0.001, 1.0)
        whole("heads", self.heads, 1, ". The release counts 14 of 28.", none=True)
        if self.layers is not None:
            ascending("layers", self.layers, 0, f"The paper uses {LAYERS} of 32.")
        if self.counts is not None and not (
            is_numbers(self.counts) and all(k >= 1 and k == int(k) for k in self.counts)
        ):
            raise ValueError(f"counts={self.counts!r}; allowed: ints >= 1, one per layer, such as (300, 200, 110)")
        check_rank(self.rank, adapts=self.budget.adapts, plain=self.version == 1 and self.counts is None)

    def is_identity(self, n: int) -> bool:
        return self.counts is None and super().is_identity(n)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        at_most("heads", self.heads, facts.decoder_heads, "the heads of this attention")
        depth = facts.decoder_depth
        layers = self.layers or scaled_layers(RANK_LAYERS if self.budget.adapts else LAYERS, 32, depth, last=depth - 2)
        if depth < 2 or layers[-1] > depth - 2:
            raise ValueError(
                f"layers={layers} of a language model of {depth} layers; allowed: 0 to {depth - 2}, layers that another follows"
            )
        if self.counts is not None and len(self.counts) != len(layers):
            raise ValueError(f"counts={self.counts!r}; allowed: {len(layers)} numbers, one for each of layers={layers}")
        runs = tuple(b - a for a, b in pairwise((0, *layers, depth)))
        n = facts.tokens_per_image
        if not (n is None or self.is_identity(n) or self.budget.adapts):
            self.kept(n, runs)
        rate = Step("projector", needs=(Hidden(), Text(self.raters)), amount=runs)
        return (rate, *(Step("llm", i + 1, self.paid(i), (stage, runs)) for stage, i in enumerate(layers)))

    def paid(self, layer: int) -> tuple[TextAttention, ...]:
        """What raters pay the image in decoder ``layer``, and the rank of it where that counts."""
        if self.version == 2:
            return (CorrectedAttention(layer, heads=self.heads, least=self.least),)
        return (TextAttention(layer, "mean", "marked"),) + (AttentionRank(layer),) * self.budget.adapts

    @property
    def recycles(self) -> bool:
        return self.version == 1 if self.recycle is None else self.recycle

    def kept(self, n: int, runs: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of an image of ``n`` to keep after each pruning layer; stretches of ``runs`` layers lie between them."""
        if self.counts is not None:
            return self.counts
        keep = self.budget.keep
        assert not isinstance(keep, str), "the rank of attention says how many"
        return reached(n, keep, runs, recycle=self.recycles)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        if tokens.stage == "projector":
            visual, text = tokens.signals.values()
            chosen = raters(text_score(visual, text), text.valid)
            return Reduction.identity(tokens, notes={"queries": torch.where(chosen, text.column, -1)})
        x, (score, *rank) = tokens.features, tokens.signals.values()
        stage, runs = tokens.amount
        n, whole = tokens.num_tokens, tokens.layout.num_tokens
        if rank:
            found = by_rank(rank[0], n, self.rank or RANK, self.budget.least(whole), self.budget.count(whole))
            return by_count(found, lambda own, k: self.cut(x[own], score[own], k))
        k = min(self.kept(whole, runs)[stage], max(n - 1, 1))
        return self.cut(x, score, k) if k < n else Reduction.identity(tokens)

    def cut(self, x: torch.Tensor, score: torch.Tensor, k: int) -> Reduction:
        """Keep the ``k`` best of ``x`` (B, N, C) by ``score`` (B, N), and means of the best of the others."""
        if not self.recycles:
            return Reduction.top(score, k, positions=self.policy)
        assign, source, role = with_means(x, score, k)
        plan = Reduction.merge(assign, source, score=score, role=role, role_names=ROLES, positions=self.policy)
        return ordered(plan, self.output_order)
