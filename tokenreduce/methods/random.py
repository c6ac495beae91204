"""Baseline: random visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

from tokenreduce.kernels.fingerprint import hash_uniform
from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ImageFingerprint
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Keep K tokens drawn without replacement; the draw depends on ``seed`` and the pixels alone.

    The same image keeps the same tokens in any batch, process or order of samples.
    """

    name = "random"
    title = "random tokens"
    stages = ("projector",)
    looks_at = "nothing"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed={self.seed!r} is a {type(self.seed).__name__}; allowed: any int, for example seed=0")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector", needs=(ImageFingerprint(),)),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        draw = hash_uniform(tokens.signal(ImageFingerprint()), tokens.num_tokens, self.seed)
        return Reduction.top(draw, self.budget.count(tokens.num_tokens), positions=self.positions)
