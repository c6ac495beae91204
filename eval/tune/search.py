"""The search: which method at which budget to evaluate next. It knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .choice import Choice, Point, Wish

LADDER = (0.66, 0.5, 0.4, 0.33, 0.25, 0.2, 0.16, 0.12, 0.1, 0.08, 0.06, 0.05)  # budgets, fractions of the visual tokens
START = LADDER.index(0.2)
ROUNDING = 1e-9  # of a share of FLOPs


class _Line:
    """The budgets of one method still in question: ``LADDER[first]`` to ``LADDER[last]``, none where ``first > last``."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.points: list[Point] = []
        self.first, self.last = 0, len(LADDER) - 1

    @property
    def next(self) -> int:
        return (self.first + self.last + 1) // 2 if self.points else START

    def note(self, index: int, point: Point, go_down: bool) -> None:
        self.points.append(point)
        if go_down:
            self.first = index + 1
        else:
            self.last = index - 1

    @property
    def least_flops(self) -> float:
        """No budget in question can cost less than this share.

        FLOPs grow with the budget, so a point at a smaller one is a bound. They are convex in it (attention is quadratic), so
        the chord from (1, 1) through a point lies below them at budgets smaller than that point's, and only there.
        """
        smallest = LADDER[self.last]
        bounds = [
            p.flops if p.keep <= smallest else p.flops - (1 - p.flops) / (1 - p.keep) * (p.keep - smallest)
            for p in self.points
        ]
        return max(bounds, default=0.0)

    def open_to(self, wish: Wish, best: Point | None) -> bool:
        """Whether something in question on this line can be better than ``best``."""
        if self.first > self.last:
            return False
        if not self.points:
            return True
        if wish.ms is not None:
            return True  # FLOPs bound no time
        allowed = wish.flops if wish.flops is not None else best.flops if best is not None else 1.0
        return self.least_flops <= allowed + ROUNDING  # of equal cost, the more accurate is better

    def prospect(self, wish: Wish) -> tuple[bool, float]:
        """Sorts lines: those that nothing is known of first, then by what they may still reach."""
        if wish.target is not None:
            return bool(self.points), self.least_flops
        return bool(self.points), -max((p.gain for p in self.points), default=0.0)


def search(
    methods: Sequence[str],
    evaluate: Callable[[str, float], Point],
    *,
    target: float | None = None,
    flops: float | None = None,
    ms: float | None = None,
    evaluations: int = 30,
) -> Choice:
    """Bisects the budgets of every method, best prospects first, until nothing better can be left or evaluations run out.

    Args:
        methods: in any order; one that raises ``ValueError`` or ``TypeError`` is left out and named in the choice.
        evaluate: a method at a budget; called at most ``evaluations`` times.
        target: share of the unreduced score to keep, in (0, 1]; the cheapest point that does is picked.
        flops: share of the prefill FLOPs allowed, in (0, 1]; the most accurate point within it is picked.
        ms: milliseconds to the first token allowed, by the clock: likewise.

    Errors: ``ValueError`` unless exactly one wish is given, in its range.
    """
    wish = Wish(target, flops, ms)
    if evaluations < len(methods):
        raise ValueError(
            f"evaluations={evaluations} is less than one for each of {len(methods)} methods; name fewer, or allow more"
        )
    lines = [_Line(method) for method in methods]
    points: list[Point] = []
    refused: dict[str, str] = {}
    while True:
        found = Choice(wish, tuple(points), refused)
        still_open = [line for line in lines if line.open_to(wish, found.best)]
        if not still_open or len(points) == evaluations:
            return Choice(wish, tuple(points), refused, exhausted=bool(still_open))
        line = min(still_open, key=lambda line: line.prospect(wish))
        index = line.next
        try:
            point = evaluate(line.method, LADDER[index])
        except (ValueError, TypeError) as error:
            refused[line.method] = str(error)
            lines.remove(line)
            continue
        points.append(point)
        line.note(index, point, go_down=wish.met_by(point) == (target is not None))
