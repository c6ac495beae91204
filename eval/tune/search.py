"""The search: which method at which budget to evaluate next, and what to pick. It knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LADDER = (0.66, 0.5, 0.4, 0.33, 0.25, 0.2, 0.16, 0.12, 0.1, 0.08, 0.06, 0.05)  # budgets, fractions of the visual tokens
START = LADDER.index(0.2)


@dataclass(frozen=True)
class Point:
    """A method at a budget, evaluated: ``kept`` of the unreduced score with its interval, ``flops`` of the prefill, shares."""

    method: str
    keep: float
    kept: float
    kept_low: float
    kept_high: float
    flops: float
    tokens: float


@dataclass(frozen=True)
class Choice:
    """What to take, None if nothing will do; ``points`` in the order they were evaluated; ``refused``: methods that cannot."""

    best: Point | None
    points: tuple[Point, ...]
    target: float | None
    flops: float | None
    refused: dict[str, str] = field(default_factory=dict)
    exhausted: bool = False

    def will_do(self, point: Point) -> bool:
        if self.target is not None:
            return point.kept >= self.target
        return self.flops is not None and point.flops <= self.flops

    @property
    def ranked(self) -> list[Point]:
        """The best point of each method that will do, best first."""
        order = sorted((p for p in self.points if self.will_do(p)), key=lambda p: merit(p, self.target))
        return list({p.method: p for p in reversed(order)}.values())[::-1]


def merit(point: Point, target: float | None) -> tuple[float, float]:
    """Smaller is better: FLOPs among those that keep enough, else accuracy among those that are cheap enough."""
    return (point.flops, -point.kept) if target is not None else (-point.kept, point.flops)


class _Line:
    """The budgets of one method still in question: above ``high`` all will do, below ``low`` none (indices into LADDER)."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.points: dict[int, Point] = {}
        self.first, self.last = 0, len(LADDER) - 1

    def next(self) -> int | None:
        if self.first > self.last:
            return None
        return START if not self.points else (self.first + self.last + 1) // 2

    def note(self, index: int, point: Point, go_down: bool) -> None:
        self.points[index] = point
        if go_down:
            self.first = index + 1
        else:
            self.last = index - 1

    def least_flops(self, target: float) -> float:
        """No budget in question that keeps enough can cost less than this share.

        FLOPs grow with the budget, so a point that fails is a bound; and they are convex in it (attention is quadratic), so
        the chord through (1, 1) and a point, drawn on to the last budget, lies below them.
        """
        bounds = [p.flops for p in self.points.values() if p.kept < target]
        for p in self.points.values():
            slope = (1 - p.flops) / (1 - p.keep)
            bounds.append(p.flops - slope * (p.keep - LADDER[self.last]))
        return max(bounds, default=0.0)


def search(
    methods: Sequence[str],
    evaluate: Callable[[str, float], Point],
    *,
    target: float | None = None,
    flops: float | None = None,
    evaluations: int = 30,
) -> Choice:
    """Bisects the budgets of every method, best prospects first, until nothing better can be left or evaluations run out.

    Args:
        methods: in any order; one that raises ``ValueError`` or ``TypeError`` is left out and named in the choice.
        evaluate: a method at a budget; called at most ``evaluations`` times.
        target: share of the unreduced score to keep, in (0, 1]; the cheapest point that does is picked.
        flops: share of the prefill FLOPs allowed, in (0, 1); the most accurate point within it is picked.

    Errors: ``ValueError`` unless exactly one wish is given, in its range.
    """
    if (target is None) == (flops is None):
        raise ValueError("give either target, the share of the accuracy to keep, or flops, the share of FLOPs allowed")
    wish = ("target", target) if target is not None else ("flops", flops)
    if not 0 < float(wish[1] or 0) <= 1:
        raise ValueError(f"{wish[0]}={wish[1]!r} is outside (0, 1]; for example {wish[0]}={0.98 if target else 0.4}")
    if evaluations < len(methods):
        raise ValueError(
            f"evaluations={evaluations} is less than one for each of {len(methods)} methods; name fewer, or allow more"
        )
    lines = [_Line(method) for method in methods]
    points: list[Point] = []
    refused: dict[str, str] = {}

    def choice(exhausted: bool) -> Choice:
        made = Choice(None, tuple(points), target, flops, refused, exhausted)
        best = next(iter(made.ranked), None)
        return Choice(best, tuple(points), target, flops, refused, exhausted)

    while len(points) < evaluations:
        best = choice(False).best
        open_lines = [line for line in lines if line.next() is not None and not _hopeless(line, best, target, flops)]
        if not open_lines:
            return choice(False)
        line = min(open_lines, key=lambda x: (len(x.points) > 0, _prospect(x, target)))
        index = line.next()
        assert index is not None
        try:
            point = evaluate(line.method, LADDER[index])
        except (ValueError, TypeError) as error:
            refused[line.method] = str(error)
            lines.remove(line)
            continue
        points.append(point)
        enough = point.kept >= target if target is not None else point.flops > float(flops or 0)
        line.note(index, point, go_down=enough)
    return choice(True)


def _prospect(line: _Line, target: float | None) -> float:
    if target is not None:
        return line.least_flops(target)
    return -max((p.kept for p in line.points.values()), default=0.0)


def _hopeless(line: _Line, best: Point | None, target: float | None, flops: float | None) -> bool:
    """Whether nothing in question on this line can be better than ``best``."""
    if not line.points:
        return False
    if target is not None:
        return best is not None and line.least_flops(target) >= best.flops
    return line.least_flops(0.0) > float(flops or 0)
