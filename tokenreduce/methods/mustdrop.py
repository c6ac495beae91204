"""MustDrop: merge alike windows in the encoder, drop what the text ignores in the language model, trim the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch

from tokenreduce.budgets import Budget
from tokenreduce.kernels.window_similarity import window_similarity
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import decay, lengths, scaled_layers
from tokenreduce.signals import TextAttention
from tokenreduce.text_attention import attended, key_set, published_thresholds, urgency
from tokenreduce.tokens import VisualTokens
from tokenreduce.tower_saliency import SCORES, Score, saliency, saliency_substitute
from tokenreduce.validation import ascending, choice, fraction, in_range, whole
from tokenreduce.window_merging import check_windows, merged_windows, merges_windows, windows_to_merge

ROLES = ("patch", "key")
KEY = 1
LAYERS = (2, 6, 10, 14)  # of 32, after which tokens are dropped


class Route(NamedTuple):
    """What lies ahead of a token: decoder layers, and whether windows merge in the vision tower."""

    depth: int
    merges: bool


@dataclass(frozen=True, kw_only=True)
class MustDrop(Method):
    """Average the windows of patches that are alike after the first vision block; remember the patches most attended
    to as keys; after four decoder layers drop what the text attends to neither jointly nor singly, keys excepted; then
    let the cache forget what did not survive to the end.

    Attributes:
        keep: visual tokens in a decoder layer, averaged over the layers as the release counts them (a pruning layer by its
            shorter output): a fraction of the patches, or a count per image.
        mode: ``budget`` fills ``keep`` exactly, with fixed numbers of tokens per stage; ``threshold`` is the published
            rule: counts follow the image and the question, ``keep`` picks the published thresholds for 192, 128 or 64 (or
            1/3, 2/9, 1/9) tokens.
        layers: decoder layers (0-based) after which tokens are dropped; None scales 2, 6, 10, 14 of 32 to the depth.
        merge: whether windows are merged in the encoder; None: where a token is one patch of a tower that can.
        window: side w of a window, at least 2.
        similarity: tau, mean cosine from which a window is merged in mode ``threshold``.
        merge_to: patches that leave the encoder, a fraction or a count, reached from above in steps of w^2 - 1; None: by
            ``similarity``, and in mode ``budget`` by the same geometric schedule as the rest.
        batch_min: merge as many windows in every image of a tower batch as in the one with fewest, as released.
        score: importance of a key: ``cls``, its [CLS] attention in the last vision block, or ``global_mean``, the attention
            it receives there from all tokens; None: ``cls``, or for towers without a [CLS] token the mean.
        key_rate: share of the encoder's patches that are keys, in (0, 1].
        global_threshold: theta_g, share of the text's attention; ``individual_threshold``: theta_i, attention of a single
            text token. None: published; in mode ``budget`` only their ratio counts.
        trim_cache: whether the cache forgets; None: where the cache of such a model can.
        legacy_decode_ids: after trimming, give a new token the cache length of each layer as its position id, as released,
            although kept keys were rotated with larger ids.
        output_order: ``raster``, or the released ``reference`` order, merged windows first.
        positions: the release renumbers (``renumber``); the default keeps position ids.

    Source: Liu et al., "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model", 2024,
        arXiv 2411.10803.
    Departures from the release: exact budgets by default; positions kept; survivors in raster order; each image on its
        own, in any batch; attention maps are never made; shares are float32; layers scale to any depth. See its page.
    """

    name = "mustdrop"
    title = "merge, filter by text, trim the cache"
    paper = "arXiv 2411.10803"
    stages = ("encoder", "projector", "llm", "cache")
    looks_at = "likeness of patches, [CLS] attention of the last block, attention of the text"
    counts_at = "output_average"

    keep: float | int = 1 / 3
    mode: Literal["budget", "threshold"] = "budget"
    layers: tuple[int, ...] | None = None
    merge: bool | None = None
    window: int = 3
    similarity: float = 0.8
    merge_to: float | int | None = None
    batch_min: bool = False
    score: Score | None = None
    key_rate: float = 0.08
    global_threshold: float | None = None
    individual_threshold: float | None = None
    trim_cache: bool | None = None
    legacy_decode_ids: bool = False
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("mode", self.mode, ("budget", "threshold"))
        choice("score", self.score, SCORES)
        choice("output_order", self.output_order, ("raster", "reference"))
        in_range("similarity", self.similarity, -1.0, 1.0)
        fraction("key_rate", self.key_rate, ", the range of a share. The paper uses 0.08.")
        whole("window", self.window, 2, ", the side of a window. The paper uses 3.")
        for argument in ("global_threshold", "individual_threshold"):
            fraction(argument, getattr(self, argument), ", the range of a share of attention", none=True)
        if self.layers is not None:
            ascending("layers", self.layers, 0, f"The paper uses {LAYERS} of 32.")
        target = self.merge_to
        counted = isinstance(target, int) and not isinstance(target, bool) and target >= 1
        if target is not None and not counted and not (isinstance(target, float) and 0.0 < target <= 1.0):
            raise ValueError(
                f"merge_to={target!r}; allowed: a float in (0, 1], a fraction of the patches, an int >= 1, or None"
            )
        if self.mode == "threshold":
            self._thresholds(None)

    def is_identity(self, n: int) -> bool:
        return self.budget.is_full

    # ------------------------------------------------------------------ where

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        merge = merges_windows(facts) if self.merge is None else self.merge
        route = Route(facts.decoder_depth, merge)
        layers = self.pruning_layers(route.depth)
        attended = saliency(self.name, facts, facts.tower_depth - 1, self.score)
        if merge:
            check_windows(self.window, facts)
        if facts.tokens_per_image is not None and self.mode == "budget" and not self.budget.is_full:
            self.schedule(facts.tokens_per_image, route)
        steps = [Step("encoder", layer=0, when="after", amount=route)] if merge else []
        steps.append(Step("projector", needs=(attended,), amount=route))
        for layer in layers:
            needs = (TextAttention(layer, "sum"), TextAttention(layer, "max"))
            steps.append(Step("llm", layer=layer + 1, needs=needs, amount=route))
        if self.trim_cache or (self.trim_cache is None and "cache" in facts.stages):
            ids: Literal["continue", "cache_length"] = "cache_length" if self.legacy_decode_ids else "continue"
            steps.append(Step("cache", layer=layers[0], decode_ids=ids))
        return tuple(steps)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        found = saliency_substitute(facts, self.score)
        if self.merge is None and not merges_windows(facts):
            found += ("no merging of windows: the vision tower joins several patches in a token, or cannot merge",)
        if self.trim_cache is None and "cache" not in facts.stages:
            found += ("no trimming of the cache: the model keeps states or sliding windows, not an entry per token",)
        return found

    def pruning_layers(self, depth: int) -> tuple[int, ...]:
        """Decoder layers of ``depth`` after which tokens are dropped; the next layer must exist."""
        layers = self.layers
        if layers is None:
            layers = scaled_layers(LAYERS, 32, depth, last=depth - 2)
        if depth < 2 or layers[-1] > depth - 2:
            raise ValueError(
                f"layers={layers} of a language model of {depth} layers; allowed: 0 to {depth - 2}, layers that another "
                "follows. MustDrop needs a language model; inside an encoder alone use a method of stage 'encoder'."
            )
        return layers

    # ------------------------------------------------------------------ how many

    def schedule(self, n: int, route: Route) -> list[int]:
        """Tokens of an image of ``n`` patches in mode ``budget``: leaving the encoder, then after each pruning layer."""
        depth = route.depth
        layers = self.pruning_layers(depth)
        runs = [b - a for a, b in pairwise((0, *layers, depth))]
        goal = min(self.keep * n if isinstance(self.keep, float) else self.keep, n)
        first = n
        if route.merges:
            target = n * decay(n, goal, runs, first_power=1)
            if self.merge_to is not None:
                target = Budget(self.merge_to).count(n)
            first = n - windows_to_merge(n, target, self.window) * (self.window**2 - 1)
        if first * runs[0] + sum(runs[1:]) > goal * depth + depth / 2:
            least = math.ceil((first * runs[0] + sum(runs[1:])) / depth)
            raise ValueError(
                f"keep={self.keep} of {n} patches cannot be reached: the {first} patches that leave the encoder fill the "
                f"first {runs[0]} of {depth} layers; allowed: an average of {least} or more. Drop earlier (layers=...) or "
                "merge more (merge_to=...)."
            )
        return lengths(first, goal, runs)

    def _thresholds(self, share: float | None) -> tuple[float, float]:
        """theta_g and theta_i: given, or those published for ``share`` of the patches (None: for exactly ``keep``)."""
        joint, single = self.global_threshold, self.individual_threshold
        if joint is None or single is None:
            published = published_thresholds(self.keep, share)
            joint, single = joint or published[0], single or published[1]
        return joint, single

    # ------------------------------------------------------------------ what

    def reduce(self, tokens: VisualTokens) -> Reduction:
        whole = tokens.layout.num_tokens
        exact = self.mode == "budget"
        full = self.budget.is_full or (exact and self.budget.count(whole) >= whole)
        if full or tokens.stage == "cache":
            return Reduction.identity(tokens)
        if tokens.stage == "encoder":
            return self._merge(tokens)
        route: Route = tokens.amount
        planned = self.schedule(whole, route) if exact else []
        if tokens.stage == "projector":
            return self._keys(tokens, planned)
        total, most = (tokens.signal(s) for s in tokens.signals)
        keys = tokens.role == KEY
        if not exact:
            kept = attended(total, most, *self._thresholds(None)) | keys
            return Reduction.where(kept, positions=self.positions)
        stage = self.pruning_layers(route.depth).index((tokens.layer or 0) - 1)
        share = self.keep if isinstance(self.keep, float) else self.keep / whole
        score = urgency(total, most, *self._thresholds(share))
        k = min(planned[stage + 1], tokens.num_tokens)
        return Reduction.top(score.masked_fill(keys, torch.inf), k, positions=self.positions)

    def _merge(self, tokens: VisualTokens) -> Reduction:
        """Section 3.2 of the paper: windows that are alike become their mean."""
        layout, n = tokens.layout, tokens.layout.num_tokens
        whole = tokens.num_tokens == tokens.prefix + n and layout.is_grid
        if not whole or layout.height % self.window or layout.width % self.window:
            raise ValueError(
                f"mustdrop cuts a complete grid into {self.window}x{self.window} windows, but block 0 holds "
                f"{tokens.num_tokens - tokens.prefix} tokens of a {layout.height}x{layout.width} grid; merge nothing before "
                "it, and pass a window that divides the grid, or merge=False"
            )
        alike = window_similarity(tokens.features[:, tokens.prefix :], layout.height, layout.width, self.window)
        if self.mode == "threshold" and self.merge_to is None:
            count = (alike >= self.similarity).sum(dim=1)
            if self.batch_min:
                count = count.min().expand_as(count)
        else:
            to = self.merge_to
            target = self.schedule(n, tokens.amount)[0] if to is None else Budget(to).count(n)
            count = torch.full((len(alike),), windows_to_merge(n, target, self.window), device=alike.device)
        assign, source, valid = merged_windows(alike, count, layout.height, layout.width, self.window, tokens.prefix)
        return Reduction.merge(assign, source, valid=valid, positions=self.positions)

    def _keys(self, tokens: VisualTokens, planned: list[int]) -> Reduction:
        """Section 3.2: the keys, which nothing later drops."""
        (score,) = tokens.signals.values()
        rate, n = self.key_rate, tokens.num_tokens
        if planned and math.ceil(rate * n - 1e-9) > planned[-1]:
            rate = planned[-1] / (2 * n)
        role = torch.zeros_like(tokens.role).scatter_(1, key_set(score, rate), KEY)
        return Reduction.identity(tokens, role=role, role_names=ROLES, score=score, positions=self.positions)
