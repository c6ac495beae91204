"""Methods that exist only to exercise the machinery: every kind of reduction, at every stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenreduce.kernels.fingerprint import hash_uniform
from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.signals import ImageFingerprint
from tokenreduce.tokens import Reduction, VisualTokens

FINGERPRINT = ImageFingerprint()


def draw(tokens: VisualTokens, seed: int) -> torch.Tensor:
    return hash_uniform(tokens.signal(FINGERPRINT), tokens.num_tokens, seed)


@dataclass(frozen=True, kw_only=True)
class CacheHalf(Method, register=False):
    """Selects at the cache: layers from ``layer`` on forget tokens after the prompt."""

    name = "cache_half"
    title = "cache probe"
    stages = ("cache",)
    layer: int = 0

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("cache", layer=self.layer, needs=(FINGERPRINT,)),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        return Reduction.top(draw(tokens, 1), self.budget.count(tokens.num_tokens))


@dataclass(frozen=True, kw_only=True)
class MergeAt(Method, register=False):
    """Merges neighbours in pairs of the current order, at the projector or at a decoder layer."""

    name = "merge_at"
    title = "merge probe"
    stages = ("projector", "llm")
    layer: int | None = None

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector" if self.layer is None else "llm", layer=self.layer),)

    def is_identity(self, n: int) -> bool:
        return False

    def reduce(self, tokens: VisualTokens) -> Reduction:
        batch, n = tokens.features.shape[:2]
        assign = (torch.arange(n) // 2).expand(batch, n)
        k = (n + 1) // 2
        source = (torch.arange(k) * 2).expand(batch, k)
        return Reduction.merge(assign, source, positions=self.positions)


@dataclass(frozen=True, kw_only=True)
class Backwards(Method, register=False):
    """Keeps every other token, in reverse order: rows whose content and position move to other seats."""

    name = "backwards"
    title = "order probe"
    stages = ("projector",)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector"),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        batch, n = tokens.features.shape[:2]
        source = torch.arange(n - 1, -1, -2).expand(batch, -1)
        assign = torch.full((batch, n), -1).scatter(1, source, torch.arange(source.shape[1]).expand_as(source))
        return Reduction(source=source, assign=assign, positions=self.positions)


@dataclass(frozen=True, kw_only=True)
class Summary(Method, register=False):
    """Keeps the first K - 1 tokens and appends one token that is the mean of the rest and sits nowhere."""

    name = "summary"
    title = "summary probe"
    stages = ("projector",)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector"),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        batch, n = tokens.features.shape[:2]
        k = self.budget.count(n)
        assign = torch.arange(n).clamp_max(k - 1).expand(batch, n)
        source = torch.arange(k).expand(batch, k).clone()
        source[:, -1] = -1
        return Reduction.merge(assign, source, positions=self.positions)


@dataclass(frozen=True, kw_only=True)
class Ragged(Method, register=False):
    """Keeps a number of tokens that depends on the image."""

    name = "ragged"
    title = "count probe"
    stages = ("projector", "llm")
    layer: int | None = None

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector" if self.layer is None else "llm", layer=self.layer, needs=(FINGERPRINT,)),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        kept = draw(tokens, 3) < 0.5
        kept[:, 0] = True
        count = kept.sum(1)
        k = int(count.max())
        source = kept.float().sort(dim=1, descending=True, stable=True).indices[:, :k]
        return Reduction(
            source=source,
            assign=torch.where(kept, kept.cumsum(1) - 1, -1),
            valid=torch.arange(k) < count[:, None],
            in_order=True,
            positions=self.positions,
        )
