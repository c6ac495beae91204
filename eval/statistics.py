"""Intervals and tests from resampled questions, with any aggregation.

Questions are drawn with replacement, whole clusters of them where they have clusters (Efron, Tibshirani, An Introduction to
the Bootstrap, 1993, chapters 8 and 13). The draw depends on a name and on the clusters alone, so that what is computed for
two models on the same questions, at different times, is paired: replicate i of both is of the same questions.
"""

from __future__ import annotations

import math
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
COVERAGE = 0.95
LONGEST = 60.0  # seconds that the replicates of one score may take


def draws(name: str, clusters: Sequence[Any]) -> Iterator[np.ndarray]:
    """``RESAMPLES`` times the indices of drawn questions; ``clusters`` (n,): what the questions belong to, None for itself."""
    members: dict[Any, list[int]] = {}
    for i, cluster in enumerate(clusters):
        members.setdefault(("alone", i) if cluster is None else ("cluster", cluster), []).append(i)
    groups = [np.array(found) for found in members.values()]
    random = np.random.default_rng(zlib.crc32(name.encode()))
    alone = len(groups) == len(clusters)
    for _ in range(RESAMPLES):
        drawn = random.integers(0, len(groups), len(groups))
        yield drawn if alone else np.concatenate([groups[g] for g in drawn])


def mean_replicates(name: str, values: Sequence[float | None], clusters: Sequence[Any]) -> np.ndarray:
    """(RESAMPLES,) means of drawn questions; None is a question without an entry; NaN where a draw has no entry at all."""
    known = np.array([np.nan if value is None else float(value) for value in values])
    found = np.full(RESAMPLES, np.nan)
    for i, drawn in enumerate(draws(name, clusters)):
        chosen = known[drawn]
        there = ~np.isnan(chosen)
        if there.any():
            found[i] = chosen[there].mean()
    return found


def replicates(
    name: str,
    entries: Sequence[Any],
    clusters: Sequence[Any],
    aggregate: Callable[[list[Any]], Any],
    score: float,
    field: str | None = None,
) -> np.ndarray:
    """(RESAMPLES,) values of ``aggregate`` over the entries of drawn questions; None is a question without an entry.

    ``field``: of entries, which names their cluster to ``aggregate``. A cluster that is drawn twice is two clusters: the
    second gets a name of its own there.

    Errors: ``ValueError`` with the reason where this cannot be: it does not give ``score`` again on the entries themselves, it
    takes too long, or it refuses questions drawn twice.
    """
    present = [entry for entry in entries if entry is not None]
    start = time.perf_counter()
    again = _number(aggregate(list(present)))
    took = time.perf_counter() - start
    if again is None or not math.isclose(again, score, rel_tol=1e-9, abs_tol=1e-12):
        raise ValueError(f"its aggregation gave {score} and, called again, {again}")
    if took * RESAMPLES > LONGEST:
        raise ValueError(f"its aggregation takes {took:.2g} s, so that {RESAMPLES} resamples would take too long")
    found = np.empty(RESAMPLES)
    for i, drawn in enumerate(draws(name, clusters)):
        chosen = [j for j in drawn if entries[j] is not None]
        value = _number(aggregate([entries[j] for j in chosen] if field is None else _apart(entries, chosen, field)))
        if value is None:
            raise ValueError("its aggregation gives no number for some resamples")
        found[i] = value
    return found


def _apart(entries: Sequence[Any], drawn: Sequence[int], field: str) -> list[Any]:
    """Drawn entries; ``field`` of those that were drawn before tells which time this is."""
    times: Counter[int] = Counter()
    found = []
    for j in drawn:
        found.append(named(entries[j], field, times[j]))
        times[j] += 1
    return found


def named(entry: Any, field: str, number: int) -> Any:
    """``entry`` with another name in ``field`` for every ``number`` but 0; of the same type where it is text."""
    value = entry[field]
    return {**entry, field: f"{value}~{number}" if isinstance(value, str) else (value, number)} if number else entry


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Ends of the percentile interval of replicates; None where fewer than half of them are numbers."""
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return None
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def standard_error(values: np.ndarray) -> float | None:
    """Standard deviation of replicates."""
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else None


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of "no difference" from paired replicates: twice the smaller tail, never below 2 / (RESAMPLES + 1)."""
    known = differences[np.isfinite(differences)]
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(known) + 1)))


def mcnemar_p(own: np.ndarray, other: np.ndarray) -> float:
    """Two-sided exact p of McNemar's test: of the questions that only one of two got right, half are expected each."""
    from scipy.stats import binomtest

    only_own, only_other = int(((own > 0) & (other <= 0)).sum()), int(((own <= 0) & (other > 0)).sum())
    return float(binomtest(only_own, only_own + only_other).pvalue) if only_own + only_other else 1.0


def corrected(p: Sequence[float], way: str) -> list[float]:
    """p values of many comparisons: ``holm`` bounds the chance of any false one, ``bh`` their expected share (``scipy``)."""
    if way == "bh":
        from scipy.stats import false_discovery_control

        return [float(x) for x in false_discovery_control(p, method="bh")] if len(p) else []
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.array([(len(p) - i) * p[j] for i, j in enumerate(order)], dtype=float))
    found = [0.0] * len(p)
    for j, value in zip(order, stepped):
        found[j] = float(min(1.0, value))
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, int, float, np.number)) and math.isfinite(float(value)):
        return float(value)
    return None
