"""What is wished for, what was seen, and what to take of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Point:
    """A method at a budget, evaluated.

    ``kept``: of the unreduced model's quality, as the report's column "of unreduced" has it, with its interval; None where a
    ratio says nothing, as of no errors to some. ``flops``, ``tokens``: shares of the decoder's prefill and of the visual
    tokens. ``gain``: how much better the score is than the unreduced one, in the task's unit; it sorts as ``kept`` does.
    ``ttft_ms``: the median time to the first token on this machine; None where it was not measured.
    """

    method: str
    keep: float
    kept: float | None
    kept_low: float | None
    kept_high: float | None
    flops: float
    tokens: float
    gain: float
    ttft_ms: float | None = None


@dataclass(frozen=True)
class Wish:
    """``target``: share of the unreduced score to keep, at the least cost; or, for the highest score, ``flops``: share of the
    prefill FLOPs allowed, or ``ms``: milliseconds to the first token allowed, as measured.

    Errors: ``ValueError`` unless exactly one is given, in (0, 1], ``ms`` above 0.
    """

    target: float | None = None
    flops: float | None = None
    ms: float | None = None

    def __post_init__(self) -> None:
        if sum(wish is not None for wish in (self.target, self.flops, self.ms)) != 1:
            raise ValueError(
                "give one of target, the share of the accuracy to keep, flops, the share of FLOPs allowed, and ms, the "
                "milliseconds to the first token allowed"
            )
        if self.ms is not None:
            if not 0 < self.ms < math.inf:
                raise ValueError(f"ms={self.ms!r}; allowed: milliseconds above 0, such as ms=80")
            return
        name, share, example = ("flops", self.flops, 0.4) if self.target is None else ("target", self.target, 0.98)
        if not 0 < float(share or 0) <= 1:
            raise ValueError(f"{name}={share!r} is outside (0, 1]; for example {name}={example}")

    def __str__(self) -> str:
        if self.target is not None:
            return f"keep {self.target:.0%} of the score"
        if self.ms is not None:
            return f"bring the first token within {self.ms:g} ms"
        return f"stay within {self.flops:.0%} of the FLOPs"

    def met_by(self, point: Point) -> bool:
        if self.target is not None:
            return point.gain >= 0 if point.kept is None else point.kept >= self.target
        if self.ms is not None:
            if point.ttft_ms is None:
                raise ValueError("the time to the first token was not measured; allowed: a wish for target or flops")
            return point.ttft_ms <= self.ms
        assert self.flops is not None
        return point.flops <= self.flops

    def order(self, point: Point) -> tuple[float, float]:
        """A key that sorts points that meet the wish, best first."""
        return (point.flops, -point.gain) if self.target is not None else (-point.gain, point.flops)


@dataclass(frozen=True)
class Choice:
    """``points`` in the order they were evaluated; ``refused``: methods that cannot, and why; ``exhausted``: evaluations ran
    out before everything was settled."""

    wish: Wish
    points: tuple[Point, ...]
    refused: dict[str, str] = field(default_factory=dict)
    exhausted: bool = False

    @property
    def ranked(self) -> list[Point]:
        """The best point of each method that meets the wish, best first."""
        best: dict[str, Point] = {}
        for point in sorted(filter(self.wish.met_by, self.points), key=self.wish.order):
            best.setdefault(point.method, point)
        return list(best.values())

    @property
    def best(self) -> Point | None:
        """What to take; None if nothing will do."""
        return next(iter(self.ranked), None)
