"""Baseline: random visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

from tokenreduce.kernels.fingerprint import hash_uniform
from tokenreduce.place_controls import Control
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ImageFingerprint
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Random(Control):
    """Keep K tokens drawn without replacement; the draw depends on ``seed`` and the pixels alone.

    The same image keeps the same tokens in any batch, process or order of samples.

    Attributes:
        seed: of the draw.
        at: ``projector``; or ``pixels``: the others' pixels never enter the vision tower. None: the projector, or, in a
            vision tower by itself, the pixels.
    """

    name = "random"
    title = "random tokens"
    looks_at = "nothing"
    needs = (ImageFingerprint(),)

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed={self.seed!r} is a {type(self.seed).__name__}; allowed: any int, for example seed=0")

    def reduce(self, tokens: VisualTokens) -> Reduction:
        draw = hash_uniform(tokens.signal(ImageFingerprint()), tokens.num_tokens, self.seed)
        return Reduction.top(draw, self.budget.count(tokens.num_tokens), positions=self.positions)
