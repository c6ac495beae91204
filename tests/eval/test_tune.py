"""The budget finder: finds what is there to be found, within its bound, and says why."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.cli.tune import reasons
from tokenreduce.eval.harness import TASKS
from tokenreduce.eval.sweep import Cell, Store
from tokenreduce.eval.sweep.pool import Processes
from tokenreduce.eval.tune import Calibration, Choice, Point, Wish, search
from tokenreduce.eval.tune.search import LADDER

# method: (budget at which half of the score is left, share of the FLOPs that no budget saves)
CURVES = {"random": (0.5, 0.02), "good": (0.05, 0.02), "better": (0.03, 0.02), "late": (0.001, 0.5), "bad": (0.9, 0.02)}


def truth(method, keep):
    """A made-up method: accuracy rises with the budget, FLOPs are convex in it and reach 1 at 1."""
    half, floor = CURVES[method]
    kept = 1 / (1 + (half / keep) ** 3)
    flops = floor + (1 - floor) * (0.8 * keep + 0.2 * keep**2)
    return Point(method, keep, kept, kept - 0.02, min(1.0, kept + 0.02), flops, keep, kept - 1)


def best_of_all(wish, table=truth, methods=CURVES):
    """What an evaluation of every method at every budget would give."""
    points = [table(method, keep) for method in methods for keep in LADDER]
    return min(filter(wish.met_by, points), key=wish.order, default=None)


@pytest.mark.parametrize("target", [0.6, 0.8, 0.9, 0.95, 0.98, 0.995])
def test_target_finds_the_cheapest_of_all_points_with_few_evaluations(target):
    calls = []
    found = search(list(CURVES), lambda m, k: calls.append((m, k)) or truth(m, k), target=target)
    assert found.best == best_of_all(Wish(target=target))
    assert not found.exhausted
    assert len(calls) == len(set(calls)) <= len(CURVES) * math.ceil(math.log2(len(LADDER) + 1))
    assert len(calls) < len(CURVES) * len(LADDER) / 3


@pytest.mark.parametrize("flops", [0.1, 0.25, 0.4, 0.6])
def test_flops_finds_the_most_accurate_point_within_them(flops):
    found = search(list(CURVES), truth, flops=flops)
    assert found.best == best_of_all(Wish(flops=flops))
    assert all(p.flops <= flops for p in found.ranked)


@pytest.mark.parametrize("ms", [20, 30, 60, 90])
def test_milliseconds_find_the_most_accurate_point_in_time_whatever_its_flops(ms):
    def timed(method, keep):
        point = truth(method, keep)
        slow = 40 if method == "better" else 0  # what FLOPs do not tell
        return dataclasses.replace(point, ttft_ms=10 + slow + 90 * point.flops)

    found = search(list(CURVES), timed, ms=ms)
    assert found.best == best_of_all(Wish(ms=ms), timed)
    assert all(p.ttft_ms <= ms for p in found.ranked)
    said = "\n".join(reasons(found, 64))
    assert f"the first token after {found.best.ttft_ms:.3g} ms; the most accurate found" in said
    assert f"to bring the first token within {ms} ms" in said


def test_milliseconds_out_of_reach_are_answered_with_the_nearest():
    found = search(["good"], lambda m, k: dataclasses.replace(truth(m, k), ttft_ms=20 + 90 * k), ms=5)
    assert found.best is None
    assert "the first token after 24.5 ms" in "\n".join(reasons(found, 64))
    with pytest.raises(ValueError, match="was not measured"):
        search(["good"], truth, ms=5)


shares = st.floats(0.01, 1.0)


wishes = st.builds(lambda name, share: {name: share}, st.sampled_from(["target", "flops"]), shares)


def as_points(columns):
    """``table(method, keep)`` from (kept, flops) of every budget of every method."""
    found = {
        (method, keep): Point(method, keep, kept, kept, kept, flops, keep, kept - 1)
        for method, column in columns.items()
        for keep, (kept, flops) in zip(LADDER, column, strict=True)
    }
    return lambda method, keep: found[method, keep]


any_table = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.tuples(shares, shares), min_size=12, max_size=12), min_size=1
)


@given(any_table, wishes, st.integers(6, 40))
@settings(max_examples=300, deadline=None)
def test_pick_is_the_best_of_what_was_seen_whatever_the_table(table, wish, evaluations):
    evaluate, seen = as_points(table), []
    found = search(list(table), lambda m, k: seen.append((m, k)) or evaluate(m, k), evaluations=evaluations, **wish)
    wish, points = Wish(**wish), [evaluate(*pair) for pair in seen]
    assert found.points == tuple(points)
    assert len(set(seen)) == len(seen) <= evaluations
    best = min(filter(wish.met_by, points), key=wish.order, default=None)
    assert (best is None) == (found.best is None)
    if best is None:
        return
    assert wish.order(found.best) == wish.order(best)
    assert {p.method for p in found.ranked} == {p.method for p in points if wish.met_by(p)}
    for named in found.ranked:
        assert wish.order(named) == min(wish.order(p) for p in points if p.method == named.method and wish.met_by(p))
    costs = [wish.order(p) for p in found.ranked]
    assert costs == sorted(costs)
    then = [line for line in reasons(found, 64) if line.startswith("Then: ")]
    assert [line.split()[1] for line in then] == [p.method for p in found.ranked[1:3]]


@st.composite
def lawful_column(draw):
    """Accuracy that does not fall with the budget, FLOPs that grow with it, convex, and reach 1 at 1."""
    kept = sorted(draw(st.lists(shares, min_size=12, max_size=12)), reverse=True)
    floor, bend = draw(st.floats(0, 0.9)), draw(st.floats(0, 1))
    return [(k, floor + (1 - floor) * ((1 - bend) * x + bend * x * x)) for k, x in zip(kept, LADDER)]


@given(st.dictionaries(st.sampled_from("abcdef"), lawful_column(), min_size=1), wishes)
@settings(max_examples=300, deadline=None)
def test_pick_is_the_best_of_the_whole_ladder_where_accuracy_and_cost_are_lawful(table, wish):
    evaluate = as_points(table)
    found = search(list(table), evaluate, evaluations=40, **wish)
    wish = Wish(**wish)
    best = best_of_all(wish, evaluate, table)
    assert not found.exhausted
    if best is None or wish.target is not None:
        assert (best and wish.order(best)) == (found.best and wish.order(found.best))
    else:  # a smaller budget of equal accuracy is not looked for
        assert found.best.kept == best.kept


LADDER_OF_DEMO = Path(__file__).parents[2] / "benchmarks/results/ladder.csv"


@pytest.mark.parametrize("name", ["target", "flops"])
def test_on_the_demo_models_own_table_at_most_one_step_is_lost(name):
    with LADDER_OF_DEMO.open() as file:
        table = {(row["method"], float(row["keep"])): row for row in csv.DictReader(file)}
    columns = ("relative", "relative_low", "relative_high", "flops_share", "token_share")
    points = {
        at: Point(*at, *(float(row[c]) for c in columns), float(row["relative"]) - 1)
        for at, row in table.items()
    }  # fmt: skip
    methods = list(dict.fromkeys(method for method, _ in points))
    assert len(points) == len(methods) * len(LADDER)
    for wished in range(10, 100):
        wish = Wish(**{name: wished / 100})
        found = search(methods, lambda m, k: points[m, k], evaluations=40, **{name: wished / 100})
        best = best_of_all(wish, lambda m, k: points[m, k], methods)
        if best is None:
            assert found.best is None
            continue
        step = LADDER.index(best.keep) + (1 if name == "flops" else -1)  # accuracy given away, or FLOPs
        near = points[best.method, LADDER[min(max(step, 0), len(LADDER) - 1)]]
        assert wish.order(found.best) <= max(wish.order(near), wish.order(best)), (wished, found.best, best)


def test_of_equal_cost_the_more_accurate_is_picked_and_random_comes_after():
    seen = [Point(*row, row[2] - 1) for row in (
        ("random", 0.25, 0.75, 0.7, 0.8, 0.25, 0.25), ("pitome", 0.25, 0.889, 0.8, 0.9, 0.25, 0.25),
        ("random", 0.1, 0.5, 0.4, 0.6, 0.1, 0.1), ("pitome", 0.1, 0.45, 0.4, 0.6, 0.1, 0.1),
    )]  # fmt: skip
    found = Choice(Wish(flops=0.3), tuple(seen))
    assert [(p.method, p.keep) for p in found.ranked] == [("pitome", 0.25), ("random", 0.25)]


def test_of_two_methods_of_equal_cost_the_more_accurate_is_found_although_the_other_came_first():
    cost = [0.9 * keep + 0.1 * keep**2 for keep in LADDER]
    table = as_points({"a": [(0.5, c) for c in cost], "b": [(1.0, c) for c in cost]})
    assert search(["a", "b"], table, target=0.5).best == table("b", 0.05)


def test_a_larger_budget_that_fits_is_tried_although_the_chord_of_a_smaller_one_lies_above_it():
    table = as_points({"a": [(keep, 0.1 + 0.9 * keep**3) for keep in LADDER]})
    assert table("a", 0.5).flops < 0.24 < 0.158 + (1 - 0.158) / (1 - 0.4) * (0.5 - 0.4)  # the chord of 0.4, at 0.5
    assert search(["a"], table, flops=0.24).best.keep == 0.5


def test_bound_is_kept_and_said():
    calls = []
    found = search(list(CURVES), lambda m, k: calls.append(m) or truth(m, k), target=0.98, evaluations=6)
    assert len(calls) == 6
    assert found.exhausted
    assert any("more --evaluations" in line for line in reasons(found, 64))


def test_nothing_will_do():
    found = search(["bad"], truth, target=0.9)
    assert found.best is None
    said = " ".join(reasons(found, 64))
    assert "take the unreduced model" in said
    assert "Nearest: bad keep=0.66" in said


def test_reasons_name_the_pick_the_runner_up_and_random():
    said = " ".join(reasons(search(list(CURVES), truth, target=0.9), 64))
    assert "tr.wrap(model, 'better', keep=0.08)" in said
    assert "Then: good" in said
    assert "Dropping at random has" in said
    assert "next smaller budget tried, 0.06" in said


def test_methods_that_the_model_refuses_are_left_out_and_named():
    def evaluate(method, keep):
        if method == "good":
            raise ValueError("no [CLS] token")
        return truth(method, keep)

    found = search(["good", "better"], evaluate, target=0.9)
    assert found.refused == {"good": "no [CLS] token"}
    assert found.best.method == "better"


@pytest.mark.parametrize(
    ("wish", "told"),
    [({}, "give one of target"), ({"target": 0.9, "flops": 0.4}, "give one of target"), ({"target": 1.2}, r"target=1.2"),
     ({"flops": 0.0}, r"flops=0.0"), ({"flops": 0.4, "ms": 5}, "give one of target"), ({"ms": 0}, r"ms=0.*above 0"),
     ({"target": 0.9, "evaluations": 1}, "evaluations=1 is less than one for each of 2")],
)  # fmt: skip
def test_bad_wishes_teach(wish, told):
    with pytest.raises(ValueError, match=told):
        search(["good", "bad"], truth, **wish)


def test_evaluations_are_kept_and_taken_up_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("TOY_MARK", str(tmp_path / "died"))
    cell, store = Cell("demo", "tr_demo_images", include=(str(TASKS),)), Store(tmp_path / "out")
    points = []
    for _ in range(2):
        pool = Processes(1, tmp_path / "logs", "toy_worker")
        with Calibration(cell, store, pool).ready() as calibration:
            points.append(calibration.point("uniform", 0.25))
            with pytest.raises(ValueError, match="refused"):
                calibration.point("tome", 0.25)
            with pytest.raises(RuntimeError, match="a bad day"):
                calibration.point("pool", 0.25)
        assert points[-1].kept == 1.0
    assert points[0] == points[1]
    assert [c["status"] for c in store.everything()].count("done") == 2


@pytest.mark.long
def test_command_on_the_demo_model(tmp_path):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")
    flags = [
        "--model",
        "demo",
        "--task",
        "tr_demo_images",
        "--method",
        "fastervlm",
        "--limit",
        "24",
        "--out",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(app, ["tune", *flags, "--target", "0.95"])
    assert done.exit_code == 0, done.output
    assert "Pick: fastervlm keep=" in done.output
    within = CliRunner().invoke(app, ["tune", *flags, "--flops", "0.2"])
    assert "stay within 20% of the FLOPs" in " ".join(within.output.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--speedup", "2", "--flops", "0.5"], "give one of them"),
        (["--speedup", "0.5"], "from 1 on"),
        (["--speedup", "2", "--target", "0.9"], "give one of target"),
    ],
)
def test_a_speed_up_is_a_share_of_flops_said_in_another_way(flags, message, tmp_path):
    found = CliRunner().invoke(
        app, ["tune", "--model", "demo", "--task", "tr_demo_images", *flags, "--out", str(tmp_path / "out")]
    )
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.output.split())
