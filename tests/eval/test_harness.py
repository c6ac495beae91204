"""The lmms-eval plug-in: same scores, measured costs, and no failure that looks like a score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokenreduce as tr
from tokenreduce.eval.demo import WEIGHTS
from tokenreduce.eval.harness import TASKS
from tokenreduce.eval.recipe import Recipe

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")

from lmms_eval.api.instance import Instance

LIMIT = 6


def replies(results, task="tr_demo_images"):
    return {s["doc_id"]: s["filtered_resps"][0] for s in results["samples"][task]}


def cli(*arguments, cwd, prefix=("-m", "lmms_eval"), model_args="pretrained=demo,tr_method=random,tr_keep=0.25", **env):
    command = [sys.executable, *prefix, "--model", "tokenreduce", "--model_args", model_args]
    command += ["--include_path", str(TASKS), "--output_path", "out", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, timeout=300)


@pytest.mark.parametrize("force_simple", [False, True])
@pytest.mark.parametrize("task", ["tr_demo_images", "tr_demo_video"])
def test_unreduced_answers_equal_those_of_the_base_class(evaluate, lm, task, force_simple):
    from lmms_eval.models import get_model

    own = get_model("llava_hf", force_simple=force_simple)(
        pretrained=str(WEIGHTS), device="cpu", device_map="cpu", dtype="float32"
    )
    ours = get_model("tokenreduce", force_simple=force_simple)(pretrained="demo", device="cpu")
    assert ours.is_simple is force_simple
    expected, found = evaluate(own, task, LIMIT), evaluate(ours, task, LIMIT)
    assert replies(found, task) == replies(expected, task)
    assert found["results"][task]["exact_match,none"] == expected["results"][task]["exact_match,none"]


def test_costs_are_measured_per_question(evaluate, lm):
    lm.use(Recipe())
    evaluate(lm)
    plain = lm.measured
    lm.use(Recipe.of("hiprune", 0.25))
    results = evaluate(lm)
    found = lm.measured
    assert results["results"]["tr_demo_images"]["exact_match,none"] == 1.0
    assert [row["doc_id"] for row in found["samples"]] == list(range(LIMIT))
    assert {(row["tokens_in"], row["tokens_kept"]) for row in found["samples"]} == {(144, 36)}
    assert {row["tokens_kept"] for row in plain["samples"]} == {144}
    for reduced, whole in zip(found["samples"], plain["samples"]):
        assert reduced["flops_unreduced"] == whole["flops"] > reduced["flops"]
        assert 0 < reduced["ttft_ms"] <= reduced["generate_ms"]
        assert reduced["method_ms"] > whole["method_ms"] == 0
        assert reduced["kv_bytes"] < whole["kv_bytes"]
    assert found["summary"]["peak_mib"] > 1


def test_composed_methods_act_one_after_the_other(evaluate, lm):
    lm.use(Recipe.of("fastervlm:0.5+fastv", 18, {"fastv.layer": 2}))
    evaluate(lm)
    row = lm.measured["samples"][0]
    assert row["tokens_kept"] == 18
    assert row["equivalent_tokens"] == (2 * 72 + 2 * 18) / 4
    lm.use(Recipe())
    assert not tr.is_wrapped(lm.model)


def test_frames_are_one_video_where_asked(evaluate, lm):
    lm.use(Recipe.of("pool", 144, images_as_video=True))
    evaluate(lm, "tr_demo_video")
    assert {row["tokens_kept"] for row in lm.measured["samples"]} == {144}
    lm.use(Recipe())


def test_swallowed_errors_fail_and_the_model_stays_usable(evaluate, lm):
    from tokenreduce.eval.harness.failures import EvaluationFailed

    lm.use(Recipe())
    calls = []

    def third(*_):
        calls.append(1)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("no room")

    handle = lm.model.get_decoder().register_forward_pre_hook(third)
    try:
        with pytest.raises(EvaluationFailed, match=r"1 of 6 prompts raised.*no room"):
            evaluate(lm)
    finally:
        handle.remove()
    assert "generate" not in vars(lm.model)
    assert evaluate(lm)["results"]["tr_demo_images"]["exact_match,none"] == 1.0


def test_answers_that_never_reached_the_model_fail(evaluate, lm, monkeypatch):
    from tokenreduce.eval.harness.failures import EvaluationFailed

    base = type(lm).__mro__[2]
    monkeypatch.setattr(base, "generate_until", lambda self, requests: [""] * len(requests))
    with pytest.raises(EvaluationFailed, match="6 of 6 answers never came from the model"):
        evaluate(lm)


def test_answers_that_are_all_empty_fail(evaluate, lm, monkeypatch):
    from tokenreduce.eval.harness.failures import EvaluationFailed

    monkeypatch.setattr(lm.tokenizer, "batch_decode", lambda ids, **_: [""] * len(ids), raising=False)
    with pytest.raises(EvaluationFailed, match="all 6 answers are empty"):
        evaluate(lm)


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round"])
def test_other_kinds_of_requests_run_on_the_reduced_model(lm, monkeypatch, kind):
    base = type(lm).__mro__[2]
    monkeypatch.setattr(base, kind, lambda self, requests: [tr.is_wrapped(self.model) for _ in requests])
    lm.use(Recipe.of("uniform", 4))
    assert getattr(lm, kind)([]) == []
    request = Instance(kind, ("?", 0, "t", "test"), 0, {"task": "t", "doc_id": 0, "repeats": 1})
    assert getattr(lm, kind)([request]) == [True]
    lm.use(Recipe())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("pretrained=demo,tr_base=nonsense", "tr_base='nonsense' is no model of lmms-eval"),
        ("pretrained=demo,tr_method=hiprun", "Did you mean 'hiprune'"),
        ("pretrained=demo,tr_method=hiprune,tr_keep=1.5", "outside"),
        ("pretrained=demo,tr_method=hiprune,tr_alhpa=1", "no parameter 'alhpa'"),
        ("pretrained=demo,tr_keep=0.5", "unreduced"),
        ("tr_method=hiprune", "pretrained is missing"),
        ("pretrained=demo,batch_size=4", "llava_hf answers one prompt at a time; allowed: 1"),
    ],
)
def test_bad_arguments_teach(arguments, told):
    from lmms_eval.models import get_model

    with pytest.raises((ValueError, TypeError), match=told):
        get_model("tokenreduce").create_from_arg_string(arguments, {"device": "cpu"})


@pytest.mark.parametrize("force_simple", [False, True])
def test_likelihoods_are_refused_before_the_model_is_loaded(monkeypatch, force_simple):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from transformers import LlavaForConditionalGeneration

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    manager = TaskManager("ERROR", include_path=str(Path(__file__).parent / "tasks"), include_defaults=False)
    with pytest.raises(ValueError, match="task scored_choices asks how likely given answers are"):
        simple_evaluate(
            model="tokenreduce", model_args="pretrained=demo", tasks=["scored_likelihood_group"], task_manager=manager,
            device="cpu", force_simple=force_simple,
        )  # fmt: skip


def test_command_line_of_lmms_eval_fails_with_exit_code_1(tmp_path):
    done = cli("--tasks", "tr_demo_images", "--limit", "2", cwd=tmp_path, model_args="pretrained=demo,tr_method=hiprun")
    assert done.returncode == 1
    assert "Did you mean 'hiprune'" in done.stderr


@pytest.mark.long
def test_unknown_task_fails_too(tmp_path):
    done = cli("--tasks", "tr_demo_image", cwd=tmp_path)
    assert done.returncode == 1
    assert "lmms-eval ended without an evaluation" in done.stderr


@pytest.mark.long
def test_two_processes_equal_one(tmp_path):
    (tmp_path / "two").mkdir()
    common = ("--tasks", "tr_demo_images,tr_demo_video", "--limit", "11", "--log_samples", "--timezone", "UTC")
    one = cli(*common, cwd=tmp_path)
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "lmms_eval")
    two = cli(*common, cwd=tmp_path / "two", prefix=torchrun)
    assert one.returncode == two.returncode == 0, one.stderr[-2000:] + two.stderr[-2000:]
    found = []
    for place, processes in ((tmp_path, 1), (tmp_path / "two", 2)):
        (log,) = (place / "out").glob("*_tokenreduce.json")
        measured = json.loads(log.read_text())
        assert measured["world_size"] == processes
        (results,) = (place / "out").glob("**/*_results.json")
        scores = json.loads(results.read_text())["results"]
        answers = {}
        for file in (place / "out").glob("**/*_samples_*.jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            assert sorted(row["doc_id"] for row in rows) == list(range(11))
            answers[file.name.split("_samples_")[1]] = {row["doc_id"]: row["filtered_resps"] for row in rows}
        rows = {(s["task"], s["doc_id"]): (s["tokens_kept"], s["flops"]) for s in measured["samples"]}
        assert len(rows) == len(measured["samples"]) == 22
        found.append((answers, rows, {task: values["exact_match,none"] for task, values in scores.items()}))
    assert found[0] == found[1]


@pytest.mark.long
def test_results_that_were_not_written_are_a_failure(tmp_path):
    code = (
        "import sys; from lmms_eval.loggers import EvaluationTracker as T;"
        "T.save_results_aggregated = lambda self, **_: None;"
        "from lmms_eval.cli.dispatch import main; sys.argv[0] = 'lmms_eval'; main()"
    )
    done = cli("--tasks", "tr_demo_images", "--limit", "1", cwd=tmp_path, prefix=("-c", code))
    assert done.returncode == 1
    assert "lmms-eval wrote no results" in done.stderr


@pytest.mark.long
def test_a_run_whose_answers_all_come_from_the_cache_ends_well(tmp_path):
    common = ("--tasks", "tr_demo_images", "--limit", "2", "--use_cache", str(tmp_path / "cache"))
    for cached in (0, 2):
        done = cli(*common, "--output_path", f"out{cached}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        (log,) = (tmp_path / f"out{cached}").glob("*_tokenreduce.json")
        found = json.loads(log.read_text())
        assert (found["answers_from_cache"], len(found["samples"])) == (cached, 2 - cached)
    assert "costs were measured for 0 of 2 answers" in done.stderr
