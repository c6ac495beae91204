"""One row per point, task and metric: score with interval, against the unreduced model, random, and a row of choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..metrics import Metric
from ..statistics import interval, standard_error
from .control import AXES, Control
from .points import Cell, Point, Table, metrics_of, pooled, same_questions, scored, tables


@dataclass(frozen=True)
class Row:
    """A line of the table. Fields with ``_low`` and ``_high`` are ends of 95 % bootstrap intervals over questions.

    docs/evaluation.md has the formula of every field. ``task``: a task, or a group with a mean of its own; ``group``: the group
    that was asked for, where it is not ``task``. ``share``: the score is a mean of entries between 0 and 1.
    """

    model: str
    task: str
    method: str
    keep: str
    state: str
    group: str | None = None
    version: str | None = None
    metric: str | None = None
    aggregation: str | None = None
    higher_is_better: bool = True
    share: bool = False
    questions: int = 0
    cluster: str | None = None
    seeds: int = 1
    score: float | None = None
    score_se: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    seed_sd: float | None = None
    without_interval: str | None = None
    relative: float | None = None
    relative_low: float | None = None
    relative_high: float | None = None
    vs_random: float | None = None
    vs_random_low: float | None = None
    vs_random_high: float | None = None
    control: str | None = None
    against: str | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    test: str | None = None
    p_value: float | None = None
    p_corrected: float | None = None
    correction: str | None = None
    tokens_in: float | None = None
    tokens_kept: float | None = None
    equivalent_tokens: float | None = None
    token_share: float | None = None
    decoder_gflops: float | None = None
    decoder_flops_share: float | None = None
    prefill_gflops: float | None = None
    prefill_flops_share: float | None = None
    kv_mib: float | None = None
    kv_share: float | None = None
    ttft_ms: float | None = None
    ttft_share: float | None = None
    ttft_share_low: float | None = None
    ttft_share_high: float | None = None
    tokens_per_s: float | None = None
    method_ms: float | None = None
    peak_mib: float | None = None
    empty_answers: int | None = None
    error: str | None = None

    @property
    def flops_share(self) -> float | None:
        """Of the decoder's prefill alone."""
        return self.decoder_flops_share

    @property
    def place(self) -> tuple[str, str | None, str, str | None]:
        """The table that the row stands in."""
        return self.model, self.group, self.task, self.metric

    @property
    def described(self) -> Metric:
        return Metric(self.metric or "", self.higher_is_better, self.aggregation or "", self.share)


def rows(cells: Sequence[Cell], *, metric: str | None = None, control: str = "tokens") -> list[Row]:
    """Rows of the cells of a store, table by table: unreduced, random, then the methods, most tokens first.

    Args:
        metric: the only one to show, as the rows call it, or without its filter; all by default.
        control: what ``random`` is made equal in, ``tokens`` averaged over decoder layers or ``flops`` of the decoder's prefill.

    Errors: ``ValueError`` for an unknown metric or control.
    """
    if control not in AXES:
        raise ValueError(f"control={control!r}; allowed: {', '.join(AXES)}")
    found: list[Row] = []
    known: dict[str, None] = {}
    for table in tables(cells):
        shown = [pair for pair in table.shown if metric in (None, pair[1], pair[1].split(",")[0])]
        known |= {name: None for _, name in table.shown}
        for task, name in shown:
            found += _rows(table, task, name, control)
        unscored = [point for point in table.points if not point.done or not table.shown]
        found += [_unscored(table, point) for point in unscored]
    if metric is not None and metric not in {*known, *(name.split(",")[0] for name in known)}:
        raise ValueError(f"metric={metric!r} is none of this sweep; allowed: {'; '.join(known)}")
    return found


def _rows(table: Table, task: str, name: str, axis: str) -> list[Row]:
    metric = table.metric(task, name)
    points = [point for point in table.points if point.done and all(name in metrics_of(c, task) for c in point.cells)]
    plain = next((point for point in points if point.is_unreduced), None)
    control = Control(axis, task, name, points)
    made = [_row(table, point, task, metric, plain, control) for point in points]
    order = {"unreduced": 0, "random": 1}
    return sorted(made, key=lambda r: (order.get(r.method, 2), r.method, -(r.equivalent_tokens or 0)))


def _row(table: Table, point: Point, task: str, metric: Metric, plain: Point | None, control: Control) -> Row:
    first = point.cells[0]
    about, first_scored = scored(first)[task], metrics_of(first, task)[metric.name]
    row = Row(
        table.model, task, point.name, point.keep, first["status"],
        group=None if task == table.task else table.task,
        version=None if about["version"] is None else str(about["version"]),
        metric=metric.name, aggregation=first_scored["aggregation"], higher_is_better=metric.higher_is_better,
        share=metric.share, questions=about["questions"], cluster=first_scored.get("cluster"), seeds=len(point.cells),
        empty_answers=sum(cell["result"]["empty_answers"] for cell in point.cells),
    )  # fmt: skip
    score, own = pooled(point, task, metric.name)
    found: dict[str, Any] = {"score": score}
    if len(point.cells) > 1:
        values = [metrics_of(cell, task)[metric.name]["value"] for cell in point.cells]
        found["seed_sd"] = None if None in values else float(np.std(values, ddof=1))
    if isinstance(own, str):
        found["without_interval"] = own
    else:
        found |= {"score_se": standard_error(own), **_ends("score", interval(own))}
    if plain is not None and score is not None:
        found |= _relative(point, plain, task, metric, score, own)
    if score is not None and not point.is_unreduced and not point.is_random:
        found |= _gain(control, point, metric, score, own)
    return replace(row, **found, **_costs(point, task))


def _relative(
    point: Point, plain: Point, task: str, metric: Metric, score: float, own: np.ndarray | str
) -> dict[str, float]:
    whole, other = pooled(plain, task, metric.name)
    kept = None if whole is None else metric.kept(score, whole)
    if kept is None:
        return {}
    if isinstance(own, str) or isinstance(other, str) or not same_questions(point.cells[0], plain.cells[0], task):
        return {"relative": kept}
    above, below = (own, other) if metric.higher_is_better else (other, own)
    ratios = np.full(len(above), np.nan)
    np.divide(above, below, out=ratios, where=below > 0)
    ratios[(above == below) & (above == 0)] = 1.0
    return {"relative": kept, **_ends("relative", interval(ratios))}


def _gain(control: Control, point: Point, metric: Metric, score: float, own: np.ndarray | str) -> dict[str, Any]:
    found = control.at(point)
    if found.score is None:
        return {"control": found.told}
    gain = {"control": found.told, "vs_random": metric.gain(score, found.score)}
    if isinstance(own, str) or found.replicates is None or not same_questions(point.cells[0], found.cell, control.task):
        return gain
    sign = 1 if metric.higher_is_better else -1
    return {**gain, **_ends("vs_random", interval(sign * (own - found.replicates)))}


def _costs(point: Point, task: str) -> dict[str, Any]:
    names = ("tokens_in", "tokens_kept", "equivalent_tokens", "ttft_ms", "tokens_per_s", "method_ms", "peak_mib")
    found: dict[str, Any] = {name: point.mean(name, task) for name in names}
    flops, whole = point.mean("flops", task), point.mean("flops_unreduced", task)
    if flops is not None:
        found["decoder_gflops"] = flops / 1e9
        found["decoder_flops_share"] = flops / whole if whole else None
    kv, kv_whole = point.mean("kv_bytes", task), point.mean("kv_bytes_unreduced", task)
    if kv is not None:
        found["kv_mib"] = kv / 2**20
        found["kv_share"] = kv / kv_whole if kv_whole else None
    if found["tokens_in"]:
        found["token_share"] = found["equivalent_tokens"] / found["tokens_in"]
    prefill = [cell["result"].get("whole_prefill") for cell in point.cells]
    if all(prefill):
        found["prefill_gflops"] = float(np.mean([p["flops"] for p in prefill])) / 1e9
        found["prefill_flops_share"] = float(np.mean([p["flops"] / p["flops_unreduced"] for p in prefill]))
    timed = [cell["result"].get("first_token") for cell in point.cells]
    if point.is_unreduced:
        found["ttft_share"] = 1.0
    elif all(timed):
        faster = [one["speedup"] for one in timed]
        found["ttft_share"] = float(np.mean([1 / one["median"] for one in faster]))
        found["ttft_share_low"] = 1 / max(one["high"] for one in faster)
        found["ttft_share_high"] = 1 / min(one["low"] for one in faster)
    return found


def _unscored(table: Table, point: Point) -> Row:
    cell = point.cells[0]
    if point.done:
        error = f"task {table.task} gave no number; see what lmms-eval wrote"
    else:
        error = f"{cell['error']['kind']}: {cell['error']['text']}"
    return Row(table.model, table.task, point.name, point.keep, cell["status"], error=error)


def _ends(name: str, ends: tuple[float, float] | None) -> dict[str, float]:
    return {} if ends is None else {f"{name}_low": ends[0], f"{name}_high": ends[1]}
