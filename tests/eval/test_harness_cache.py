"""lmms-eval's response cache under ``--model tokenreduce``: answers of the same model, costs that say what they cover."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenreduce.eval.harness import TASKS
from tokenreduce.eval.recipe import Recipe

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager


@pytest.fixture
def evaluated(lm, tmp_path):
    """``evaluated(limit)``: how many answers were measured, how many came from the cache, and the replies."""
    places = [str(TASKS), str(Path(__file__).parent / "tasks")]
    manager = TaskManager("ERROR", include_path=places, include_defaults=False)

    def run(limit=3, task="scored_gaps"):
        results = simple_evaluate(
            model=lm, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, use_cache=str(tmp_path / "cache")
        )  # fmt: skip
        measured, replies = lm.measured, [s["filtered_resps"][0] for s in results["samples"][task]]
        assert measured["summary"]["prompts"] == len(measured["samples"])
        return len(measured["samples"]), measured["answers_from_cache"], replies

    yield run
    lm.use(Recipe())


def test_costs_say_how_many_answers_they_cover(lm, evaluated, capsys):
    lm.use(Recipe.of("random", 0.25))
    assert evaluated()[:2] == (3, 0)
    assert "response cache" not in capsys.readouterr().err
    measured, cached, replies = evaluated(5)
    assert (measured, cached) == (2, 3)
    assert "costs were measured for 2 of 5 answers; the others came from the response cache" in capsys.readouterr().err
    assert evaluated(5) == (0, 5, replies)


def test_answers_belong_to_what_is_on_the_model(lm, evaluated, monkeypatch):
    from tokenreduce.eval.sweep import identity

    lm.use(Recipe.of("random", 0.25))
    assert evaluated()[:2] == (3, 0)
    lm.use(Recipe.of("random", 0.5))
    assert evaluated()[:2] == (3, 0)
    lm.use(Recipe.of("random", 0.25))
    assert evaluated()[:2] == (0, 3)
    true_hash = identity.file_hash
    for changed in ("model.safetensors", "random.py"):  # weights written again in place; the source of the method
        identity.model_hash.cache_clear()
        monkeypatch.setattr(identity, "file_hash", lambda file, to=changed: to if file.name == to else true_hash(file))
        assert evaluated()[:2] == (3, 0)
    monkeypatch.undo()
    identity.model_hash.cache_clear()
