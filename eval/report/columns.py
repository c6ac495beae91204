"""Rows of a report as text: Markdown, and the cells of the page's table."""

from __future__ import annotations

from collections.abc import Sequence

from .table import Row

HEADS = ("method", "keep", "tokens", "FLOPs", "score", "of unreduced", "minus random", "first token, of unreduced time")


def markdown(found: Sequence[Row]) -> str:
    """A table per model and task; intervals in brackets."""
    lines: list[str] = []
    for place in dict.fromkeys((row.model, row.task) for row in found):
        own = [row for row in found if (row.model, row.task) == place]
        asked = max(row.questions for row in own)
        lines += [
            f"### {place[0]}, {place[1]}, {asked} questions",
            "",
            f"| {' | '.join(HEADS)} |",
            "|" + " --- |" * len(HEADS),
        ]
        lines += [f"| {' | '.join(cells_of(row))} |" for row in own] + [""]
    return "\n".join(lines)


def cells_of(row: Row) -> tuple[str, ...]:
    """A row as text, one per head of ``HEADS``."""
    if row.error is not None:
        return row.method, row.keep, row.state, *[""] * (len(HEADS) - 3)
    return (
        row.method,
        row.keep,
        "" if row.tokens_kept is None else f"{row.equivalent_tokens:.0f} of {row.tokens_in:.0f}",
        percent(row.flops_share),
        percent(row.score, row.score_low, row.score_high),
        percent(row.relative, row.relative_low, row.relative_high),
        percent(row.vs_random, row.vs_random_low, row.vs_random_high, sign="+"),
        percent(row.ttft_share, row.ttft_share_low, row.ttft_share_high),
    )


def percent(value: float | None, low: float | None = None, high: float | None = None, sign: str = "") -> str:
    if value is None:
        return ""
    between = "" if low is None or high is None else f" [{100 * low:{sign}.0f}, {100 * high:{sign}.0f}]"
    return f"{100 * value:{sign}.1f} %{between}"
