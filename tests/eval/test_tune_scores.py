"""The budget finder on scores of any kind: error rates, sums below zero, tasks without a score of their own."""

from __future__ import annotations

import pytest

from tokenreduce.cli.tune import reasons
from tokenreduce.eval.harness import TASKS
from tokenreduce.eval.sweep import Cell, Store
from tokenreduce.eval.sweep.evaluator import Outcome
from tokenreduce.eval.tune import Calibration, search


class Scores:
    """A pool in which every method, at every budget, has the questions' entries of ``marks``; FLOPs are the budget."""

    slots = 1

    def __init__(self, marks, leaf=None, **metric):
        self.marks, self.leaf, self.metric = marks, leaf, metric

    def run(self, queue):
        while queue:
            cell = queue.popleft()
            name, keep = cell.recipe.name, float(cell.recipe.keep)
            entries = self.marks[name]
            metric = {
                "value": sum(entries) / len(entries),
                "higher_is_better": True,
                "aggregation": "mean",
            } | self.metric
            questions = [{"doc_id": i, "score": x, "scores": {"m": x}} for i, x in enumerate(entries)]
            cost = {"tokens_in": 1, "tokens_kept": keep, "equivalent_tokens": keep, "flops": keep, "flops_unreduced": 1}
            about = {"version": None, "questions": len(entries), "metrics": {"m": metric}}
            yield (
                cell,
                Outcome(
                    result={
                        "tasks": {self.leaf or cell.task: about}, "metric": "m", "questions": questions,
                        "score": None if self.leaf else metric["value"],
                        "measured": cost, "empty_answers": 0,
                    }
                ),
            )  # fmt: skip


def tuned(tmp_path, wish, marks, **metric):
    cell, store = Cell("demo", "tr_demo_images", include=(str(TASKS),)), Store(tmp_path / "out")
    methods = [name for name in marks if name != "unreduced"]
    with Calibration(cell, store, Scores(marks, **metric)).ready("target" in wish) as calibration:
        return search(methods, calibration.point, **wish)


@pytest.mark.parametrize("wish", [{"target": 0.95}, {"flops": 0.3}], ids=["target", "flops"])
def test_errors_are_to_be_few(tmp_path, wish):
    """Of 8 questions 2 are wrong unreduced, 3 with random, 2 with uniform, none with hiprune."""
    marks = {
        "unreduced": [1, 1, 0, 0, 0, 0, 0, 0],
        "random": [1, 1, 1, 0, 0, 0, 0, 0],
        "uniform": [1, 0, 1, 0, 0, 0, 0, 0],
        "hiprune": [0] * 8,
    }
    found = tuned(tmp_path, wish, marks, higher_is_better=False)
    seen = {p.method: p for p in found.points}
    assert {name: p.gain for name, p in seen.items()} == {"random": -1 / 8, "uniform": 0.0, "hiprune": 2 / 8}
    assert {name: p.kept for name, p in seen.items()} == {"random": 2 / 3, "uniform": 1.0, "hiprune": None}
    assert found.best.method == "hiprune"
    assert {p.method for p in found.ranked} == {"uniform", "hiprune"} | ({"random"} if "flops" in wish else set())
    assert "a score better by 0.25 than unreduced" in " ".join(reasons(found, 8))


def test_no_errors_at_all_are_a_score_to_keep(tmp_path):
    marks = {"unreduced": [0] * 4, "random": [0, 0, 0, 1], "hiprune": [0] * 4}
    found = tuned(tmp_path, {"target": 0.95}, marks, higher_is_better=False)
    assert {p.method: p.kept for p in found.points} == {"random": 0.0, "hiprune": 1.0}
    assert [p.method for p in found.ranked] == ["hiprune"]


@pytest.mark.parametrize("unreduced", [0.0, -2.0])
def test_of_a_score_that_is_not_above_zero_no_share_is_kept_but_the_best_within_a_cost_is_found(tmp_path, unreduced):
    marks = {"unreduced": [unreduced] * 2, "random": [-3.0, -3.0], "hiprune": [1.0, -1.5]}
    with pytest.raises(RuntimeError, match=rf"scores {unreduced:g} on tr_demo_images.*--flops and --ms find"):
        tuned(tmp_path / "a", {"target": 0.95}, marks)
    found = tuned(tmp_path / "b", {"flops": 0.5}, marks)
    assert found.best.method == "hiprune"
    assert found.best.gain == -0.25 - unreduced
    way = "better" if found.best.gain > 0 else "worse"
    assert f"a score {way} by {abs(found.best.gain):g} than unreduced" in " ".join(reasons(found, 2))


@pytest.mark.parametrize("about", [{"value": None}, {"leaf": "one_of_a_group"}], ids=["no number", "group"])
def test_a_task_without_a_score_of_its_own_is_refused(tmp_path, about):
    with pytest.raises(RuntimeError, match="name one of its tasks"):
        tuned(tmp_path, {"flops": 0.5}, {"unreduced": [1.0], "random": [1.0]}, **about)
