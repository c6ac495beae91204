"""The scores that a cell keeps are lmms-eval's, whatever they are made of, and what intervals need is with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenreduce.eval import statistics
from tokenreduce.eval.demo import WEIGHTS
from tokenreduce.eval.harness import TASKS, told
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.sweep import Cell
from tokenreduce.eval.sweep.evaluator import Evaluator

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")


OURS = str(Path(__file__).parent / "tasks")


LIMIT = 12


@pytest.fixture(scope="module")
def cell(own_folders):
    """``cell(task)``: the result of a sweep's cell, ``random`` at a quarter of the tokens."""
    evaluator = Evaluator()

    def run(task, recipe=None, seed=None):
        recipe = Recipe.of("random", 0.25) if recipe is None else recipe
        outcome = evaluator.evaluate(Cell("demo", task, recipe, include=(OURS, str(TASKS)), limit=LIMIT, seed=seed))
        assert outcome.error is None, outcome.error["traceback"]
        return outcome.result

    return run


def right(result, task=None):
    return [q["reply"] == q["target"] for q in result["questions"] if task in (None, q["task"])]


def test_a_sum_over_categories_is_resampled_by_its_own_aggregation(cell):
    found = cell("scored_sum")
    about = found["tasks"]["scored_sum"]
    assert about["version"] == 2.0
    by_kind = {}
    for question, mark in zip(found["questions"], right(found)):
        by_kind.setdefault(question["kind"], []).append(mark)
    assert {"count", "read"} < set(by_kind)
    sums = {"number": 0.0, "look": 0.0}
    for kind, marks in by_kind.items():
        sums["number" if kind in ("count", "read") else "look"] += 100 * np.mean(marks)
    assert {name: about["metrics"][name]["value"] for name in sums} == pytest.approx(sums)
    for metric in about["metrics"].values():
        assert metric["aggregation"] == "sum_of_categories"
        assert len(metric["replicates"]) == statistics.RESAMPLES
    # the first resample, by hand
    drawn = next(statistics.draws("scored_sum", [None] * LIMIT))
    again = {}
    for i in drawn:
        if found["questions"][i]["kind"] in ("count", "read"):
            again.setdefault(found["questions"][i]["kind"], []).append(right(found)[i])
    expected = sum(100 * np.mean(marks) for marks in again.values())
    assert about["metrics"]["number"]["replicates"][0] == pytest.approx(expected)


def test_an_error_rate_says_that_lower_is_better(cell):
    found = cell("scored_error")
    metric = found["tasks"]["scored_error"]["metrics"]["error"]
    assert metric["higher_is_better"] is found["higher_is_better"] is False
    assert metric["value"] == pytest.approx(1 - np.mean(right(found)))


def test_filters_are_metrics_of_the_same_questions(cell):
    found = cell("scored_filters")
    assert list(found["tasks"]["scored_filters"]["metrics"]) == ["exact_match,strict", "exact_match,flexible"]
    assert len(found["questions"]) == found["tasks"]["scored_filters"]["questions"] == LIMIT
    for name in ("exact_match,strict", "exact_match,flexible"):
        entries = [question["scores"][name] for question in found["questions"]]
        assert np.mean(entries) == pytest.approx(found["tasks"]["scored_filters"]["metrics"][name]["value"])
    assert {q["cluster"] for q in found["questions"]} == {q["kind"] for q in found["questions"]}  # its cluster_key


def test_groups_keep_their_leaves_and_the_mean_they_declare(cell):
    found = cell("scored_group")
    assert list(found["tasks"]) == ["scored_group", "scored_first", "scored_second"]
    values = {name: about["metrics"]["exact_match"]["value"] for name, about in found["tasks"].items()}
    for leaf in ("scored_first", "scored_second"):
        assert values[leaf] == pytest.approx(np.mean(right(found, leaf)))
    assert values["scored_group"] == pytest.approx(np.mean(right(found)))
    assert found["tasks"]["scored_group"]["metrics"]["exact_match"]["aggregation"] == "mean of tasks by size"
    assert found["score"] == values["scored_group"]
    bare = cell("scored_bare_group")
    assert list(bare["tasks"]) == ["scored_first", "scored_second"]
    assert (
        told(bare)
        == f"scored_first exact_match {values['scored_first']}, scored_second exact_match {values['scored_second']}"
    )


def test_prompts_are_those_of_the_model_that_does_the_work(cell, own_folders):
    """The score of the unreduced model is the one that lmms-eval reports for that model, question by question."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    def replies(model, arguments):
        manager = TaskManager("ERROR", include_path=OURS, include_defaults=False, model_name=model)
        found = simple_evaluate(
            model=model, model_args=arguments, tasks=["scored_prompts"], task_manager=manager, limit=LIMIT,
            bootstrap_iters=0, batch_size=1, device="cpu",
        )  # fmt: skip
        table = found["results"]["scored_prompts"]
        return [row["filtered_resps"][0] for row in found["samples"]["scored_prompts"]], table["exact_match,none"]

    own, score = replies("llava_hf", f"pretrained={WEIGHTS},device_map=cpu,dtype=float32")
    assert score == 1.0  # by its own block; the default asks where the star is
    assert replies("tokenreduce", "pretrained=demo") == (own, score)
    swept = cell("scored_prompts", Recipe())
    assert ([question["reply"] for question in swept["questions"]], swept["score"]) == (own, score)


def test_a_task_that_chose_the_prompts_of_another_model_is_refused(lm, own_folders):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from tokenreduce.eval.harness.failures import EvaluationFailed

    manager = TaskManager("ERROR", include_path=OURS, include_defaults=False)
    with pytest.raises(EvaluationFailed, match=r"TaskManager\(model_name='llava_hf'\)"):
        simple_evaluate(model=lm, tasks=["scored_prompts"], task_manager=manager, limit=2, bootstrap_iters=0)


def test_a_seed_decides_what_is_drawn(cell):
    first, again, second = ([q["reply"] for q in cell("scored_drawn", seed=s)["questions"]] for s in (0, 0, 1))
    assert first == again
    assert first != second


@pytest.mark.parametrize("recipe", [Recipe(), Recipe.of("random", 0.25), Recipe.of("fastervlm:0.5+fastv", 18)], ids=str)
def test_a_question_without_a_picture_is_asked_as_text_and_counted(cell, recipe):
    found = cell("scored_gaps", recipe)
    alone = [q for q in found["questions"] if q["kind"] == "color"]
    assert 0 < len(alone) < LIMIT
    assert found["measured"]["prompts"] == LIMIT
    assert found["measured"]["text_alone"] == len(alone)
    for question in found["questions"]:
        if question["kind"] == "color":
            assert (question["tokens_in"], question["tokens_kept"]) == (0, 0)
            assert 0 < question["flops"] == question["flops_unreduced"]
        else:
            assert question["tokens_in"] == 144
    assert all(str(question["reply"]).strip() for question in alone)


def test_a_question_that_fails_is_named(own_folders):
    cell = Cell("demo", "scored_lost", Recipe.of("random", 0.25), include=(OURS, str(TASKS)), limit=6)
    error = Evaluator().evaluate(cell).error
    assert error["kind"] == "raised"
    assert "the picture is cut off (at scored_lost 2)" in error["text"]
