"""How scores are drawn again: clusters whole, pairs together, the same draws for two runs."""

from __future__ import annotations

import numpy as np
import pytest

from tokenreduce.eval import statistics
from tokenreduce.eval.harness.joined import joining_field
from tokenreduce.eval.harness.scores import scores
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.report import columns
from tokenreduce.eval.sweep import Cell

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")


@pytest.mark.parametrize(
    ("aggregate", "told"),
    [
        (lambda entries, state=[]: state.append(1) or float(len(state) + 1), "called again"),
        (lambda entries: 1 / (len(set(map(id, entries))) == len(entries)), "refuses resamples"),
        (lambda entries: None, "called again"),
    ],
)
def test_what_cannot_be_resampled_says_why(aggregate, told):
    from tokenreduce.eval.harness.scores import _resampled

    class Task:
        def aggregation(self):
            return {"m": aggregate}

    entries = [{"score": float(i)} for i in range(8)]
    about = _resampled("t", entries, [None] * 8, 1.0, Task(), "m")
    assert told in about["without_interval"]
    assert "replicates" not in about


PAIRS = {  # picture: category, answers to its two questions (right or wrong)
    "a.png": ("existence", (1.0, 1.0)),  # both right: 100 for accuracy and 100 for accuracy+
    "b.png": ("existence", (0.0, 0.0)),
    "c.png": ("count", (1.0, 0.0)),  # half right: 50 and 0
    "d.png": ("count", (1.0, 1.0)),
}


POINTS = {"a.png": 200, "b.png": 0, "c.png": 50, "d.png": 200}


class Paired:
    """MME's two scores, of which these pictures have one."""

    def aggregation(self):
        from lmms_eval.tasks.mme.utils import mme_aggregate_results

        return {"mme_perception_score": mme_aggregate_results}


def mme_like(pairs, questions=("is it?", "is it not?")):
    """What a cell keeps of lmms-eval's results on ``pairs``."""
    samples = []
    for picture, (category, marks) in pairs.items():
        for question, mark in zip(questions, marks):
            doc = {"question_id": picture, "category": category, "question": question}
            entry = {"question_id": picture, "category": category, "score": mark}
            samples.append({"doc_id": len(samples), "doc": doc, "filtered_resps": ["Yes"], "target": "Yes"})
            samples[-1]["mme_perception_score"] = entry
    task = Paired()
    value = task.aggregation()["mme_perception_score"]([s["mme_perception_score"] for s in samples])
    results = {"samples": {"mme": samples}, "results": {"mme": {"mme_perception_score,none": value}}, "configs": {}}
    return scores(results, "mme", [], {"mme": task})


def test_questions_that_count_in_pairs_are_drawn_in_pairs():
    found = mme_like(PAIRS)["tasks"]["mme"]["metrics"]["mme_perception_score"]
    assert found["value"] == (200 + 0) / 2 + (50 + 200) / 2 == 225
    assert (found["cluster"], found.get("without_interval")) == ("question_id", None)
    pictures = list(PAIRS)
    twice = 0
    for drawn, replicate in zip(statistics.draws("mme", [p for p in pictures for _ in "12"]), found["replicates"]):
        assert (drawn[::2] + 1 == drawn[1::2]).all()  # whole pictures
        by_category = {}
        for question in drawn[::2]:
            by_category.setdefault(PAIRS[pictures[question // 2]][0], []).append(POINTS[pictures[question // 2]])
        assert replicate == pytest.approx(sum(sum(points) / len(points) for points in by_category.values()))
        twice += len(set(drawn[::2])) < 4
    assert twice > 1800  # a picture drawn twice counts as two


def test_pairs_give_interval_and_difference_in_the_report(tmp_path):
    """Two pictures worth 200 and 0 of one model, 50 and 0 of another: what a draw of two of them can give is known."""
    from tokenreduce.eval.report import compared, rows
    from tokenreduce.eval.sweep import Store

    cost = {"tokens_in": 10.0, "tokens_kept": 5.0, "equivalent_tokens": 5.0, "flops": 1.0, "flops_unreduced": 2.0}
    about = {"measured": cost, "first_token": None, "empty_answers": 0, "pictures": []}
    cells = Store(tmp_path / "sweep")
    with cells.locked():
        for recipe, marks in ((Recipe(), (1.0, 1.0)), (Recipe.of("hiprune", 0.5), (1.0, 0.0))):
            made = mme_like({"a": ("count", marks), "b": ("count", (0.0, 0.0))})
            cells.write(Cell("demo", "mme", recipe), "done", result={**made, **about})
    found = rows(cells.everything())
    plain, reduced = compared(cells.everything(), found, "unreduced:1.0")
    assert (plain.score, reduced.score) == ((200 + 0) / 2, (50 + 0) / 2)
    assert (plain.score_low, plain.score_high) == (
        0,
        200,
    )  # neither, or twice the good one: a quarter of the draws each
    assert plain.score_se == pytest.approx(np.sqrt(0.25 * 100**2 + 0.25 * 100**2), rel=0.05)
    assert (reduced.score_low, reduced.score_high) == (0, 50)
    assert (reduced.difference, reduced.difference_low, reduced.difference_high) == (25 - 100, 50 - 200, 0)
    assert (reduced.relative, reduced.test) == (0.25, "paired bootstrap")
    assert "Questions of one question_id are drawn together" in columns.notes(found)


@pytest.mark.parametrize(
    ("field", "aggregate", "expected"),
    [
        ("image_id", lambda entries: float(np.mean([e["score"] for e in entries])), None),  # counts each by itself
        ("image_id", lambda entries: both_right(entries, "image_id"), "image_id"),
        ("category", lambda entries: both_right(entries, "category"), None),  # kinds are no things
    ],
)
def test_what_joins_questions_is_found_whatever_the_model_answered(field, aggregate, expected):
    for marks in ([1.0] * 8, [0.0] * 8, [1.0, 0.0] * 4):
        entries = [{field: f"x{i // 2}", "score": mark} for i, mark in enumerate(marks)]
        assert joining_field(entries, [{field: e[field]} for e in entries], aggregate) == expected
        assert joining_field(entries, [{} for _ in entries], aggregate) is None  # not the document's: may be an answer


def both_right(entries, field):
    found = {}
    for entry in entries:
        found.setdefault(entry[field], []).append(entry["score"])
    return float(np.mean([all(scores) for scores in found.values()]))


def test_clusters_are_drawn_whole():
    clusters = ["a", "a", None, "b", "b", "b"]
    for i, drawn in zip(range(50), statistics.draws("t", clusters)):
        counts = np.bincount(drawn, minlength=6)
        assert counts[0] == counts[1], i
        assert counts[3] == counts[4] == counts[5]
        assert counts[0] + counts[2] + counts[3] == 3  # three clusters


def test_draws_of_two_runs_are_the_same_and_of_two_tasks_are_not():
    one, again, other = (next(statistics.draws(name, [None] * 40)) for name in ("t", "t", "u"))
    assert (one == again).all()
    assert (one != other).any()


def test_clustered_means_spread_as_the_theory_says():
    """Ten equal questions per cluster carry no more than one: the standard error is that of the clusters' mean."""
    random = np.random.default_rng(1)
    clusters = [i // 10 for i in range(600)]
    values = (random.random(60) < 0.5).repeat(10).astype(float)
    whole = statistics.standard_error(statistics.mean_replicates("t", values, clusters))
    alone = statistics.standard_error(statistics.mean_replicates("t", values, [None] * 600))
    assert whole == pytest.approx(values.std() / np.sqrt(60), rel=0.1)
    assert alone == pytest.approx(values.std() / np.sqrt(600), rel=0.1)


def test_p_values_equal_those_of_the_textbooks():
    own, other = np.array([1.0] * 9 + [0] + [1] * 20), np.array([0.0] * 9 + [1] + [1] * 20)
    assert statistics.mcnemar_p(own, other) == pytest.approx(2 * (1 + 10) / 2**10)  # 9 against 1: binomial tail, twice
    assert statistics.mcnemar_p(own, own) == 1.0
    assert statistics.corrected([0.01, 0.04, 0.03], "holm") == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.corrected([0.01, 0.04, 0.03], "bh") == pytest.approx([0.03, 0.04, 0.04])
    assert statistics.bootstrap_p(np.full(2000, 1.0)) == pytest.approx(2 / 2001)
    assert statistics.bootstrap_p(np.zeros(2000)) == 1.0
