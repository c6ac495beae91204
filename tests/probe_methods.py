"""Methods that exist only to exercise the machinery: every kind of reduction, at every stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenreduce.kernels.fingerprint import hash_uniform
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ImageFingerprint, Keys, LastQueryAttention
from tokenreduce.tokens import VisualTokens

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

    def most(self, n: int) -> int:
        return n

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


@dataclass(frozen=True, kw_only=True)
class Nothing(Method, register=False):
    """Keeps no token of images whose number is odd, and all of the others; with ``every``, none of any."""

    name = "nothing"
    title = "empty probe"
    stages = ("projector", "llm")
    layer: int | None = None
    every: bool = True

    def most(self, n):
        return n

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector" if self.layer is None else "llm", layer=self.layer, needs=(FINGERPRINT,)),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        batch, n = tokens.features.shape[:2]
        if self.every:
            return Reduction.select(torch.empty(batch, 0, dtype=torch.long), n, positions=self.positions)
        odd = tokens.signal(FINGERPRINT) % 2 == 1
        return Reduction.where(~odd[:, None].expand(batch, n), positions=self.positions)


@dataclass(frozen=True, kw_only=True)
class Remembers(Method, register=False):
    """Notes a number of each original token at decoder layer 1, and at layer 3 keeps the tokens of the highest."""

    name = "remembers"
    title = "notes probe"
    stages = ("llm",)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("llm", layer=1), Step("llm", layer=3))

    def is_identity(self, n: int) -> bool:
        return False

    @staticmethod
    def number(tokens: VisualTokens) -> torch.Tensor:
        n = tokens.layout.num_tokens
        return torch.arange(n).mul(7).remainder(n).float()

    def reduce(self, tokens: VisualTokens) -> Reduction:
        if tokens.layer == 1:
            assert not tokens.notes
            return Reduction.identity(tokens, notes={"number": self.number(tokens).expand(len(tokens.features), -1)})
        number = tokens.notes["number"]
        assert number.shape == tokens.assign.shape == (len(tokens.features), tokens.layout.num_tokens)
        return Reduction.top(number.gather(1, tokens.source), self.budget.count(tokens.entered))


@dataclass(frozen=True, kw_only=True)
class MergePairs(Method, register=False):
    """Inside an encoder: merges each patch of the first 2r with its neighbour, in the given blocks."""

    name = "merge_pairs"
    title = "encoder probe"
    stages = ("encoder",)
    blocks: tuple[int, ...] = (0, 2)
    r: int = 3
    when: str = "middle"
    proportional: bool = True
    output_order: str = "raster"

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return tuple(
            Step("encoder", b, needs=(Keys(b),), amount=self.r, when=self.when, proportional=self.proportional)
            for b in self.blocks
        )

    def is_identity(self, n: int) -> bool:
        return False

    def reduce(self, tokens: VisualTokens) -> Reduction:
        batch, n = tokens.features.shape[:2]
        assert tokens.signal(Keys(tokens.layer)).shape[:2] == (batch, n)
        r, p = int(tokens.amount), tokens.prefix
        rows = torch.arange(n)
        # the last 2r patches in pairs, and their rows in front of the other patches
        row = torch.where(rows < n - 2 * r, rows + r * (rows >= p), p + (rows - n + 2 * r) // 2)
        source = torch.empty(n - r, dtype=torch.long)
        source[row.flip(0)] = rows.flip(0)  # the first of a pair is the anchor
        return Reduction.merge(
            row.expand(batch, n), source.expand(batch, -1), weight=tokens.size, positions=self.positions
        )


@dataclass(frozen=True, kw_only=True)
class MergeAlike(Method, register=False):
    """Inside an encoder: neighbouring patches whose keys point the same way become one, as many as there are."""

    name = "merge_alike"
    title = "encoder probe by content"
    stages = ("encoder",)
    blocks: tuple[int, ...] = (0, 2)
    when: str = "middle"
    proportional: bool = True
    output_order: str = "raster"

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return tuple(
            Step("encoder", b, needs=(Keys(b),), amount=1, when=self.when, proportional=self.proportional)
            for b in self.blocks
        )

    def is_identity(self, n: int) -> bool:
        return False

    def reduce(self, tokens: VisualTokens) -> Reduction:
        keys, p = tokens.signal(Keys(tokens.layer)), tokens.prefix
        joins = torch.zeros(keys.shape[:2], dtype=torch.bool)
        joins[:, p + 1 :: 2] = torch.cosine_similarity(keys[:, p + 1 :: 2], keys[:, p:-1:2], dim=-1) > 0
        anchors = Reduction.where(~joins)
        return Reduction.merge(
            (~joins).cumsum(dim=1) - 1,
            anchors.source,
            weight=tokens.size,
            valid=anchors.valid,
            positions=self.positions,
        )


@dataclass(frozen=True, kw_only=True)
class ReadsSome(Method, register=False):
    """While decoding reads the entries of a picture that new tokens attend to most, the latest ones counting twice."""

    name = "reads_some"
    title = "decode probe"
    stages = ("decode",)
    layer: int = 2

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("decode", layer=self.layer, needs=(LastQueryAttention(self.layer - 1),)),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        assert tokens.features.shape[2] == 0
        mass = 2 * tokens.signal(LastQueryAttention(self.layer - 1)) + tokens.notes.get("mass", 0)
        return Reduction.top(mass, self.budget.count(tokens.num_tokens), notes={"mass": mass / 2})
