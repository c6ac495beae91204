"""One sweep with every kind of score, and the rows of its report as they follow by hand from what was answered."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest

from tokenreduce.eval.data import documents
from tokenreduce.eval.demo import WEIGHTS
from tokenreduce.eval.report import rows, write
from tokenreduce.eval.sweep import Grid, Store, cell, hashes, tasks
from tokenreduce.eval.sweep.runner import run

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")

from tokenreduce.eval.sweep.evaluator import Evaluator

OURS = Path(__file__).parent / "tasks"
QUESTIONS = 6
LAYERS, HEADS, SIZE, FLOAT = 4, 4, 64, 4  # of the demo model's decoder


class InTurn:
    """A pool of this process."""

    slots = 1

    def __init__(self):
        self.evaluator = Evaluator()

    def run(self, queue):
        while queue:
            one = queue.popleft()
            yield one, self.evaluator.evaluate(one)


class Sweep:
    def __init__(self, place):
        self.tasks, self.out, self.pool = place / "tasks", place / "out", InTurn()
        shutil.copytree(OURS, self.tasks, ignore=shutil.ignore_patterns("__pycache__"))
        self.ask(next(islice(documents("images"), 5, None))[2])

    def ask(self, answer):
        """Two questions beside the task, of which the second is to be answered with ``answer``."""
        asked = list(islice(documents("images"), 4, 6))
        content = [{"number": 4 + i, "question": q[1], "answer": q[2]} for i, q in enumerate(asked)]
        content[1]["answer"] = answer
        (self.tasks / "questions.json").write_text(json.dumps(content))
        for remembered in (hashes.file_hash, tasks.task_identity, cell.model_hash):
            remembered.cache_clear()

    def run(self, names, methods, keep, model="demo"):
        grid = {"model": str(model), "tasks": names, "methods": methods, "keep": keep, "limit": QUESTIONS}
        tally = run(Grid.of(grid | {"include_path": str(self.tasks)}), self.out, self.pool)
        assert tally.errors == {}
        return tally

    def rows(self):
        """By task, metric, method and keep."""
        found = rows(Store(self.out).everything())
        return {(row.model.partition(" ")[0], row.task, row.metric, row.method, row.keep): row for row in found}

    def replies(self, task, method):
        (found,) = (
            c["result"]["questions"]
            for c in Store(self.out).everything()
            if c["cell"]["task"] == task and c["cell"]["model"] == "demo"
            and [m["method"] for m in c["cell"]["recipe"]["methods"]] == ([] if method == "unreduced" else [method])
        )  # fmt: skip
        return [(q["kind"], q["reply"], q["target"]) for q in found]


@pytest.fixture(scope="module")
def sweep(own_folders, tmp_path_factory):
    place = tmp_path_factory.mktemp("everything")
    made = Sweep(place)
    made.run(["scored_sum", "scored_error"], ["hiprune"], [8])
    made.run(["scored_group", "scored_filters", "scored_beams", "scored_prompts", "scored_questions"], ["random"], [8])
    window = place / "window"
    shutil.copytree(WEIGHTS, window)
    config = json.loads((window / "config.json").read_text())
    config["text_config"] |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 40}
    (window / "config.json").write_text(json.dumps(config))
    made.run(["scored_error"], ["random"], [36, 16], window)
    return made


RIGHT = {  # of the six questions of the first picture; of a picture with eight objects
    "unreduced": ([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
    "random": ([0, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 0]),
    "hiprune": ([1, 1, 1, 1, 1, 1], None),
}
KINDS = ["read", "count", "color", "exist", "where", "read"]
TEXT = [10, 10, 10, 11, 11, 11]  # tokens of the prompts without the picture, in any order
VISUAL = 144


def flops(visual, text):
    """Of a prefill: a layer's four projections of 128 to 256, three matrices of 128 x 352, and 256 channels twice per pair."""
    n = visual + text
    return LAYERS * 2 * (n * (4 * 128 * 256 + 3 * 128 * 352) + n * n * 2 * 256)


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def test_answers_are_those_that_the_rows_below_are_made_of(sweep):
    for method, (first, _) in RIGHT.items():
        told = sweep.replies("scored_sum", method)
        assert [kind for kind, _, _ in told] == KINDS
        assert [int(reply == target) for _, reply, target in told] == first
    for method in ("unreduced", "random"):
        told = sweep.replies("scored_group", method)
        assert [int(reply == target) for _, reply, target in told] == [*RIGHT[method][0], *RIGHT[method][1]]


def test_a_sum(sweep):
    """100 for each kind: of numbers, read (0 and 1 of random's two) and count (0); of looks, colour, exist (1) and where."""
    found = sweep.rows()
    number = {
        m: found["demo", "scored_sum", "number", m, k]
        for m, k in (("unreduced", "1.0"), ("random", "8"), ("hiprune", "8"))
    }
    look = {
        m: found["demo", "scored_sum", "look", m, k]
        for m, k in (("unreduced", "1.0"), ("random", "8"), ("hiprune", "8"))
    }
    assert {m: row.score for m, row in number.items()} == {
        "unreduced": 200,
        "random": 100 * (0 + 1) / 2 + 0,
        "hiprune": 200,
    }
    assert {m: row.score for m, row in look.items()} == {"unreduced": 300, "random": 0 + 100 + 0, "hiprune": 300}
    assert (number["random"].relative, number["hiprune"].vs_random) == (50 / 200, 200 - 50)
    assert (look["random"].relative, look["hiprune"].vs_random) == (100 / 300, 300 - 100)
    assert not number["random"].share


def test_an_error_rate(sweep):
    found = sweep.rows()
    rate = {
        m: found["demo", "scored_error", "error", m, k]
        for m, k in (("unreduced", "1.0"), ("random", "8"), ("hiprune", "8"))
    }
    assert {m: row.score for m, row in rate.items()} == {"unreduced": 0, "random": 4 / 6, "hiprune": 0}
    assert {m: row.relative for m, row in rate.items()} == {
        "unreduced": 1,
        "random": 0,
        "hiprune": 1,
    }  # no errors of some
    assert rate["hiprune"].vs_random == 4 / 6  # better by so much
    assert not rate["random"].higher_is_better


def test_a_group_and_its_leaves(sweep):
    found = sweep.rows()
    for task, right, of in (("scored_first", 2, 6), ("scored_second", 1, 6), ("scored_group", 2 + 1, 12)):
        row = found["demo", task, "exact_match", "random", "8"]
        assert (row.score, row.questions) == (right / of, of)
        assert found["demo", task, "exact_match", "unreduced", "1.0"].score == 1
        assert row.relative == right / of
    assert row.aggregation == "mean of tasks by size"


def test_filters(sweep):
    """The flexible one looks for yes, red, blue or two, of which no answer is one."""
    found = sweep.rows()
    for name, plain, chance, kept in (("strict", 1, 2 / 6, 2 / 6), ("flexible", 0, 0, 1)):
        row = found["demo", "scored_filters", f"exact_match,{name}", "random", "8"]
        assert (found["demo", "scored_filters", f"exact_match,{name}", "unreduced", "1.0"].score, row.score) == (
            plain,
            chance,
        )
        assert (row.relative, row.questions) == (kept, 6)


def test_costs_with_one_beam_and_with_three(sweep):
    found = sweep.rows()
    whole, less = mean(flops(VISUAL, t) for t in TEXT), mean(flops(8, t) for t in TEXT)
    per_token = LAYERS * 2 * HEADS * SIZE * FLOAT
    for task, metric, beams in (("scored_error", "error", 1), ("scored_beams", "exact_match", 3)):
        plain, row = (found["demo", task, metric, *at] for at in (("unreduced", "1.0"), ("random", "8")))
        assert plain.decoder_gflops == pytest.approx(beams * whole / 1e9)
        assert row.decoder_gflops == pytest.approx(beams * less / 1e9)
        assert row.decoder_flops_share == pytest.approx(less / whole)
        assert plain.kv_mib == pytest.approx(beams * per_token * (VISUAL + mean(TEXT)) / 2**20)
        assert row.kv_share == pytest.approx((8 + mean(TEXT)) / (VISUAL + mean(TEXT)))
        assert (row.tokens_in, row.equivalent_tokens) == (VISUAL, 8)


def test_a_sliding_window(sweep):
    """A layer with a window of 40 holds 39 tokens: 36 and the text are more than that, 16 and the text are not."""
    found = sweep.rows()
    plain, wide, small = (
        found["window", "scored_error", "error", *at]
        for at in (("unreduced", "1.0"), ("random", "36"), ("random", "16"))
    )
    assert plain.kv_mib == pytest.approx(LAYERS * 2 * HEADS * SIZE * FLOAT * 39 / 2**20)
    assert wide.kv_share == 1
    assert small.kv_share == pytest.approx((16 + mean(TEXT)) / 39)


def test_prompts_are_the_models_own(sweep):
    """By lmms-eval's default the task asks every time where the star is, which these answers are not."""
    assert sweep.rows()["demo", "scored_prompts", "exact_match", "unreduced", "1.0"].score == 1


def test_a_changed_question(sweep, tmp_path):
    """The last question, which random gets right: half of two; then another answer is wanted."""
    place = ("demo", "scored_questions", "exact_match")
    row = sweep.rows()[(*place, "random", "8")]
    assert (row.score, row.score_low, row.score_high, row.relative) == (1 / 2, 0, 1, 1 / 2)
    assert row.score_se == pytest.approx((2 / 4 * 0.5**2) ** 0.5, rel=0.05)  # 0 and 1 in a quarter of the draws each
    again = sweep.run(["scored_questions"], ["random"], [8])
    assert (again.done, again.skipped) == (0, 2)
    sweep.ask("another")
    again = sweep.run(["scored_questions"], ["random"], [8])
    assert (again.done, again.skipped) == (2, 0)
    plain, row = (sweep.rows()[(*place, *at)] for at in (("unreduced", "1.0"), ("random", "8")))
    assert (plain.score, row.score, row.relative) == (1 / 2, 0, 0)
    (text,) = write(sweep.out, tmp_path / "report", ["md"])
    told = text.read_text().partition("Of an earlier state of weights, questions or code, and left out:")[2]
    assert [line.partition(" of ")[0] for line in sorted(told.splitlines()) if line] == [
        "* demo, scored_questions: random keep=8", "* demo, scored_questions: unreduced",
    ]  # fmt: skip
