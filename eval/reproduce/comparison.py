"""Published beside ours: a line per budget and column, and a page of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..report import Row, rows
from ..sweep import Grid, Store
from .published import Column, Published


@dataclass(frozen=True)
class Line:
    """One figure: ``published`` and ``ours`` with its 95 % interval, both as the paper prints them, and each as a share of the
    unreduced model's own; None: not published, or not scored, which ``error`` explains."""

    column: Column
    keep: float | int | None
    published: float | None
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    random: float | None = None
    questions: int = 0
    published_share: float | None = None
    share: float | None = None
    error: str = ""

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.published is None else self.ours - self.published


def compare(table: Published, grid: Grid, store: Store) -> list[Line]:
    """Lines of ``table``, column by column, from the cells of ``grid`` that ``store`` holds."""
    done = [store.read(cell) for cell in {cell.key: cell for cell in grid.cells}.values()]
    found = rows([cell for cell in done if cell is not None])
    return [_line(table, column, i, keep, found) for i, column in enumerate(table.columns) for keep in table.figures]


def environment(grid: Grid, store: Store) -> dict[str, Any]:
    """Versions and device of the latest cell of ``grid`` that has a result."""
    done = [found for cell in grid.cells if (found := store.read(cell)) is not None and "result" in found]
    return dict(max(done, key=lambda found: found["written"])["result"]["environment"]) if done else {}


def _line(table: Published, column: Column, at: int, keep: float | int | None, found: Sequence[Row]) -> Line:
    own = [row for row in found if row.task == column.task and (row.metric or "").split(",")[0] == column.metric]
    whole = _of(own, "unreduced", "1.0")
    row = whole if keep is None else next((r for r in own if _names(r, keep)), None)
    published, unreduced = table.figures[keep][at], table.figures.get(None, (None,) * len(table.columns))[at]
    line = Line(
        column, keep, published, published_share=published / unreduced if published is not None and unreduced else None
    )
    if row is None or row.score is None:
        asked = [r.error for r in found if r.error and r.task == column.task and (keep is None or _names(r, keep))]
        return Line(**{**vars(line), "error": asked[0] if asked else "no result yet"})
    chance = None if keep is None else _of(own, "random", row.keep)
    scaled = {
        name: None if score is None else column.scale * score
        for name, score in (
            ("ours", row.score),
            ("low", row.score_low),
            ("high", row.score_high),
            ("random", chance.score if chance else None),
        )
    }
    share = row.score / whole.score if whole is not None and whole.score else None
    return Line(**{**vars(line), **scaled, "questions": row.questions, "share": share})


def _of(found: Sequence[Row], method: str, keep: str) -> Row | None:
    return next((row for row in found if row.method == method and row.keep == keep), None)


def _names(row: Row, keep: float | int) -> bool:
    return row.method not in ("unreduced", "random") and row.keep == (
        f"{keep:.4g}" if isinstance(keep, float) else str(keep)
    )


HEAD = ("tokens", "published", "its share", "ours", "95 %", "our share", "difference", "random", "questions")


def page(table: Published, lines: Sequence[Line], model: str, environment: dict[str, Any]) -> str:
    """Markdown: what was asked, what differs from the paper, a table per column."""
    setting = ", ".join(f"{name}={value!r}" for name, value in table.parameters.items())
    parts = [
        f"# {table.method}: published and repeated\n",
        f"Published: {table.source}, on `{table.model}`{f', {setting}' if setting else ''}.\n",
        f"Ours: `{model}`, {', '.join(f'{name} {value}' for name, value in environment.items())}. A share is of the unreduced "
        "model's own score.\n",
    ]
    if model != table.model:
        parts.append("**Another model than the published one:** compare shares of the unreduced model, not scores.\n")
    if table.note:
        parts.append(f"{table.note}\n")
    for column in table.columns:
        parts.append(f"## {column.label} (`{column.task}`, `{column.metric}`)\n")
        if column.note:
            parts.append(f"{column.note}\n")
        parts.append("\n".join(_markdown([line for line in lines if line.column == column])) + "\n")
    return "\n".join(parts)


def _markdown(lines: Sequence[Line]) -> list[str]:
    made = [f"| {' | '.join(HEAD)} |", f"| --- {'| ---: ' * (len(HEAD) - 1)}|"]
    return made + [f"| {' | '.join(cells(line))} |" for line in lines]


def cells(line: Line) -> list[str]:
    """A line as text, under ``HEAD``."""

    def told(x: float | None, form: str = ".1f") -> str:
        return "-" if x is None else format(x, form)

    interval = "-" if line.low is None else f"{told(line.low)} to {told(line.high)}"
    return [
        "all" if line.keep is None else str(line.keep),
        told(line.published),
        told(line.published_share, ".1%"),
        told(line.ours) if not line.error else line.error,
        interval,
        told(line.share, ".1%"),
        told(line.difference, "+.1f"),
        told(line.random),
        str(line.questions or "-"),
    ]
