"""Every row against one row of choice: the paired difference, its interval, and the p of no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..statistics import bootstrap_p, corrected, interval, mcnemar_p
from .points import Cell, Point, entries, pooled, same_questions, tables
from .rows import Row

CORRECTIONS = ("holm", "bh")


def compared(cells: Sequence[Cell], rows: Sequence[Row], against: str, correction: str | None = None) -> list[Row]:
    """``rows`` with their differences to the row ``against`` of the same table, where it has one.

    Args:
        against: a method as the rows call it, ``hiprune``, for the row at the same budget, or with its budget, ``hiprune:0.25``;
            ``unreduced``.
        correction: of the p values of one table, ``holm`` (of the chance of any false one) or ``bh`` (of their share).

    Errors: ``ValueError`` for a row that no table has, and an unknown correction.
    """
    if correction not in (None, *CORRECTIONS):
        raise ValueError(f"correction={correction!r}; allowed: {', '.join(CORRECTIONS)}")
    points = {(t.model, t.task, p.name, p.keep): p for t in tables(cells) for p in t.points if p.done}
    by_name = {(row.place, row.method, row.keep): row for row in rows}
    name, _, budget = against.rpartition(":") if ":" in against else (against, "", "")
    found = []
    for row in rows:
        keep = "1.0" if name == "unreduced" else budget or row.keep
        other = by_name.get((row.place, name, keep))
        if row.error is not None or other is None or other is row or row.score is None or other.score is None:
            found.append(row)
            continue
        own, theirs = (points[r.model, r.group or r.task, r.method, r.keep] for r in (row, other))
        found.append(_against(row, other, own, theirs))
    if not any(row.against for row in found):
        names = dict.fromkeys(f"{row.method}:{row.keep}" for row in rows if row.error is None)
        raise ValueError(
            f"against={against!r} is no row of this sweep; allowed: a method, or one of {', '.join(names)}"
        )
    return found if correction is None else _corrected(found, correction)


def _against(row: Row, other: Row, own: Point, theirs: Point) -> Row:
    metric, task = row.described, row.task
    assert row.score is not None
    assert other.score is not None
    assert row.metric is not None
    made = replace(row, against=f"{other.method} {other.keep}", difference=metric.gain(row.score, other.score))
    (_, mine), (_, others) = (pooled(point, task, row.metric) for point in (own, theirs))
    if isinstance(mine, str) or isinstance(others, str) or not same_questions(own.cells[0], theirs.cells[0], task):
        return made
    sign = 1 if metric.higher_is_better else -1
    differences = sign * (mine - others)
    ends = interval(differences) or (None, None)
    a, b = (entries(point, task, row.metric) for point in (own, theirs))
    if a is not None and b is not None and np.isin([a, b], (0, 1)).all():
        test, p = "McNemar, exact", mcnemar_p(a, b)
    else:
        test, p = "paired bootstrap", bootstrap_p(differences)
    return replace(made, difference_low=ends[0], difference_high=ends[1], test=test, p_value=p)


def _corrected(rows: Sequence[Row], way: str) -> list[Row]:
    found = list(rows)
    for place in dict.fromkeys(row.place for row in rows):
        own = [i for i, row in enumerate(rows) if row.place == place and row.p_value is not None]
        for i, p in zip(own, corrected([found[i].p_value or 0.0 for i in own], way)):
            found[i] = replace(found[i], p_corrected=p, correction=way)
    return found
