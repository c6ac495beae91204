"""A table of sweeps: which methods kept how much at which budget, on which family and kind of input."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

OWN = Path(__file__).parent / "best_known.csv"  # written by benchmarks/best_known.py
SLACK = 1.1  # of the budget, tokens averaged over layers that a method may keep and still be compared at it


@dataclass(frozen=True)
class Row:
    """A method at a budget on a task: ``relative`` of the unreduced score, ``share`` of tokens averaged over layers."""

    family: str
    kind: str
    model: str
    task: str
    method: str
    keep: float
    relative: float
    share: float


def rows_of(file: Path) -> tuple[Row, ...]:
    """The rows of a table whose budget and score are numbers; without a column ``family`` or ``kind`` they are of any.

    Errors: ``ValueError`` for a file that is no such table.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            found = [row for line in csv.DictReader(lines) if (row := _row(line)) is not None]
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(
            f"table={str(file)!r} cannot be read ({error!r}); allowed: table.csv of tokenreduce report"
        ) from None
    if not found:
        raise ValueError(f"table={str(file)!r} holds no method at a budget; allowed: table.csv of tokenreduce report")
    return tuple(found)


def _row(line: Mapping[str, str]) -> Row | None:
    try:
        keep = float(line["keep"])
        relative, share = float(line["relative"]), float(line["token_share"])
        if "." not in line["keep"]:
            keep /= float(line["tokens_in"])
    except ValueError:  # not done, a composition, or a budget that a method finds
        return None
    if line["method"] == "unreduced" or not 0 < keep <= 1:
        return None
    places = (line.get("family") or "", line.get("kind") or "", line["model"], line["task"], line["method"])
    return Row(*places, keep, relative, share)


def ranked(rows: Iterable[Row], share: float) -> list[tuple[str, float, list[float]]]:
    """Methods with the measured budget nearest to ``share`` and their scores there and at smaller ones, best first.

    The score is the mean over tasks. Where methods are equal, the next smaller budget decides.
    """
    held = [row for row in rows if row.share <= SLACK * row.keep]
    keeps = sorted({row.keep for row in held}, reverse=True)
    nearest = min(keeps, key=lambda keep: abs(math.log(keep / share)), default=0.0)
    below = [keep for keep in keeps if keep <= nearest]
    tasks = {(row.model, row.task) for row in held}
    table: dict[tuple[str, float], dict[tuple[str, str], float]] = {}
    for row in held:
        table.setdefault((row.method, row.keep), {})[row.model, row.task] = row.relative
    means = {at: sum(by.values()) / len(tasks) for at, by in table.items() if by.keys() == tasks}
    found = [
        (m, nearest, [means.get((m, keep), -1.0) for keep in below]) for m in dict.fromkeys(r.method for r in held)
    ]
    return sorted((one for one in found if one[2][0] >= 0), key=lambda one: one[2], reverse=True)
