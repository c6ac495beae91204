"""What the numbers of a report say: which way is better, what a row is, what it is paired with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from report_cells import at, cost, result, stored

from tokenreduce.eval.metrics import Metric
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.report import compared, rows, write
from tokenreduce.eval.report.columns import columns
from tokenreduce.eval.report.figures import pareto
from tokenreduce.eval.report.points import tables
from tokenreduce.eval.sweep import Cell, Store


@pytest.mark.parametrize(
    ("metric", "gain", "kept"),
    [
        (Metric("m"), (0.5 - 0.25), (0.25 / 0.5, 0.5 / 0.25)),
        (Metric("m", higher_is_better=False), (0.25 - 0.5), (0.5 / 0.25, 0.25 / 0.5)),
    ],
)
def test_which_way_is_better(metric, gain, kept):
    assert metric.gain(0.5, 0.25) == gain
    assert (metric.kept(0.25, 0.5), metric.kept(0.5, 0.25)) == kept
    assert metric.kept(0.0, 0.0) == 1.0
    assert Metric("m").kept(0.5, 0.0) is None
    assert Metric("m", higher_is_better=False).kept(0.5, 0.0) == 0.0  # errors where there were none


def test_the_front_of_an_error_rate_is_low():
    points = [(0.2, 0.5), (0.5, 0.1), (0.7, 0.3)]
    assert pareto(points) == [(0.2, 0.5)]
    assert pareto(points, higher_is_better=False) == [(0.2, 0.5), (0.5, 0.1)]


def test_an_error_rate_that_is_higher_is_a_loss(tmp_path):
    error = {"higher_is_better": False}
    cells = stored(
        tmp_path,
        (Recipe(), result([0, 0, 0, 1], cost(100, 1e9), **error)),
        (at(0.25), result([0, 0, 0, 0], cost(25, 0.25e9), **error)),
        (at(0.25, "hiprune"), result([0, 1, 0, 0], cost(25, 0.25e9), **error)),
    )
    plain, chance, row = rows(cells)
    assert (plain.score, chance.score, row.score) == (0.25, 0.0, 0.25)
    assert row.vs_random == -0.25
    assert (row.relative, chance.relative) == (1.0, None)  # an error rate of 0 is no multiple of 25 %
    shown = {c.head: c.text(row) for c in columns([plain, chance, row])}
    assert shown["gain over random at equal tokens"].startswith("-25.0 pp")


def test_percent_stand_at_shares_only(tmp_path):
    total = {"aggregation": "total", "replicates": [1500.0] * 1000 + [1450.0] * 1000}
    points = {"value": 1475.0} | total
    other = {"value": 1200.0} | total | {"replicates": [1200.0] * 1000 + [1250.0] * 1000}
    cells = stored(
        tmp_path,
        (Recipe(), result([5.0, 9.0], cost(100, 1e9), **points)),
        (at(0.25), result([5.0, 9.0], cost(25, 0.25e9), **other)),
        (at(0.25, "hiprune"), result([5.0, 9.0], cost(25, 0.25e9), **points)),
    )
    row = rows(cells)[-1]
    assert not row.share
    assert (row.vs_random, row.vs_random_low, row.vs_random_high) == (275.0, 200.0, 300.0)
    shown = {c.head: c.text(row) for c in columns([row])}
    assert shown["score"] == "1,475 ± 25.006 [1,450, 1,500]"
    assert shown["gain over random at equal tokens"] == "+275 [+200, +300]"
    assert shown["of unreduced"] == "100.0 % [100, 100]"
    # a mean of 0 to 100 is no share, either
    cells = stored(tmp_path / "b", (Recipe(), result([100.0, 50.0], cost(100, 1e9))))
    assert {c.head: c.text(r) for r in rows(cells) for c in columns([r])}["score"].startswith("75 ±")


def test_no_interval_without_a_reason(tmp_path):
    about = {"aggregation": "bleu", "without_interval": "its aggregation takes 3 s"}
    cells = stored(tmp_path, (Recipe(), result([0.5, 0.1], cost(100, 1e9), **about)))
    (row,) = rows(cells)
    assert (row.score_low, row.without_interval) == (None, "its aggregation takes 3 s")
    (text,) = write(tmp_path / "sweep", tmp_path / "report", ["md"])
    assert "No interval: its aggregation takes 3 s" in text.read_text()


@pytest.mark.parametrize(("control", "expected"), [("tokens", (4 + 8) / 16), ("flops", (0.75 * 8 + 0.25 * 4) / 8)])
def test_the_control_costs_the_same(tmp_path, control, expected):
    """Random: 4 of 8 right at 40 tokens and 0.40 GFLOPs, all at 80 tokens and 0.80; a method at 60 tokens and 0.70."""
    half, all_of = [1, 1, 1, 1, 0, 0, 0, 0], [1] * 8
    cells = stored(
        tmp_path,
        (Recipe(), result(all_of, cost(100, 1e9))),
        (at(0.4), result(half, cost(40, 0.4e9))),
        (at(0.8), result(all_of, cost(80, 0.8e9))),
        (at(0.4, "fastv"), result(half, cost(60, 0.7e9))),
        (at(0.2, "hiprune"), result(half, cost(20, 0.2e9))),
    )
    found = {row.method: row for row in rows(cells, control=control)}
    assert found["fastv"].control == "random 0.4 to random 0.8"
    assert found["fastv"].vs_random == pytest.approx(0.5 - expected)
    assert found["fastv"].vs_random_low <= found["fastv"].vs_random <= found["fastv"].vs_random_high
    assert found["hiprune"].vs_random is None
    assert found["hiprune"].control == "outside what random was measured at"
    axis = {"tokens": "tokens", "flops": "decoder FLOPs"}[control]
    assert f"gain over random at equal {axis}" in {c.head for c in columns(list(found.values()), control)}


def test_seeds_are_one_row_and_all_of_them_the_control(tmp_path):
    cells = stored(
        tmp_path,
        (Recipe(), result([1, 1, 1, 1], cost(100, 1e9))),
        *((at(0.4, seed=s), result(marks, cost(40, 0.4e9))) for s, marks in enumerate(([1, 1, 0, 0], [1, 0, 0, 0]))),
        (at(0.4, "hiprune"), result([1, 1, 1, 0], cost(40, 0.4e9))),
    )
    _, chance, row = rows(cells)
    assert (chance.method, chance.seeds, chance.score) == ("random", 2, 0.375)
    assert chance.seed_sd == pytest.approx(np.std([0.5, 0.25], ddof=1))
    assert row.vs_random == 0.375


def test_seeds_of_drawn_answers_are_one_row(tmp_path):
    def drawn(recipe, *marks, tokens=40):
        return [
            (Cell("demo", "t", recipe, seed=seed), result(right, cost(tokens, tokens * 1e7)))
            for seed, right in enumerate(marks)
        ]

    whole = drawn(Recipe(), [1, 1, 1, 1], [1, 1, 1, 0], tokens=100)
    cells = stored(tmp_path, *whole, *drawn(at(0.4, "hiprune"), [1, 1, 0, 0], [1, 0, 0, 0]))
    (table,) = tables(cells)
    assert not table.left_out
    plain, row = rows(cells)
    assert [(r.seeds, r.score) for r in (plain, row)] == [(2, 0.875), (2, 0.375)]
    assert row.seed_sd == pytest.approx(np.std([0.5, 0.25], ddof=1))
    assert row.relative == pytest.approx(0.375 / 0.875)


def test_rows_are_told_apart_by_what_differs(tmp_path):
    made = {}
    for model in ("a/step-1/hf", "a/step-2/hf"):
        folder = tmp_path / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": model}))
        for args in ({}, {"max_pixels": 5}):
            for limit in (None, 4):
                cell = Cell(str(folder), "t", Recipe(), model_args=args, limit=limit)
                made[cell.key] = (cell, result([1, 0], cost(100, 1e9)))
    found = rows(stored(tmp_path, *made.values()))
    assert len({row.model for row in found}) == len(found) == 8
    assert "step-1/hf (limit=4, max_pixels=5)" in {row.model for row in found}
    assert "step-2/hf (limit=None, max_pixels=default)" in {row.model for row in found}


def test_one_state_of_the_code_is_the_baseline_of_its_own_rows(tmp_path):
    cells = stored(
        tmp_path,
        (Recipe(), result([1, 1, 1, 1], cost(100, 1e9))),
        (at(0.4, "hiprune"), result([1, 1, 1, 0], cost(40, 0.4e9))),
    )
    older = [
        {**c, "identity": {**c["identity"], "model_files": "other"}, "written": "2020-01-01T00:00:00"} for c in cells
    ]
    found = rows([*older, *cells])
    assert [(row.method, row.relative) for row in found] == [("unreduced", 1.0), ("hiprune", 0.75)]
    store = Store(tmp_path / "sweep")
    for cell in older:
        key = cell["key"][::-1]
        (store.cells / f"{key}.json").write_text(json.dumps({**cell, "key": key}))
    (text,) = write(tmp_path / "sweep", tmp_path / "report", ["md"])
    assert "Of an earlier state of weights, questions or code, and left out" in text.read_text()
    assert "hiprune keep=0.4 of 2020-01-01" in text.read_text()


def test_any_two_rows_are_tested_in_pairs(tmp_path):
    first, second = [1] * 12 + [0] * 4, [1] * 3 + [0] * 13
    cells = stored(
        tmp_path,
        (Recipe(), result([1] * 16, cost(100, 1e9))),
        (at(0.4), result(second, cost(40, 0.4e9))),
        (at(0.4, "hiprune"), result(first, cost(40, 0.4e9))),
        (at(0.4, "fastv"), result(second, cost(40, 0.4e9))),
    )
    found = {row.method: row for row in compared(cells, rows(cells), "fastv", "holm")}
    assert found["hiprune"].difference == 9 / 16
    assert (found["hiprune"].test, found["hiprune"].against) == ("McNemar, exact", "fastv 0.4")
    assert found["hiprune"].p_value == pytest.approx(2 / 2**9)  # nine of nine, both tails
    assert found["random"].p_value == 1.0
    assert found["hiprune"].p_corrected == pytest.approx(4 / 2**9)  # two comparisons
    assert found["fastv"].against is None
    assert found["unreduced"].against is None  # another budget
    assert {r.method: r.difference for r in compared(cells, rows(cells), "unreduced")}["fastv"] == -13 / 16
    with pytest.raises(ValueError, match=r"against='tome' is no row.*hiprune:0\.4"):
        compared(cells, rows(cells), "tome")


def test_flops_say_what_they_count_and_bytes_are_shown(tmp_path):
    cells = stored(tmp_path, (at(0.25, "hiprune"), result([1, 0], cost(25, 0.3e9))))
    shown = {c.head: c.text(row) for row in rows(cells) for c in columns([row])}
    assert (shown["decoder FLOPs"], shown["prefill FLOPs"], shown["KV"]) == ("30.0 %", "64.0 %", "25.0 %")


def test_scores_that_are_no_number_are_null(tmp_path):
    from tokenreduce.eval.results import write_json

    write_json(tmp_path / "a.json", {"score": float("nan"), "rows": [1.0, float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"score": None, "rows": [1.0, None]}
    assert "NaN" not in (tmp_path / "a.json").read_text()
