"""Sweeps that cannot be meant, or whose packages do not fit: said once, in words, with exit codes."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from sweep_grids import BASIC, NEEDS, OWN_TASKS, call, toy_run

from tokenreduce.adapters.upstream.seams import seam_changed
from tokenreduce.eval.sweep import Cell, Grid, Store, SweepFailed
from tokenreduce.eval.sweep.evaluator import MISFIT, Evaluator
from tokenreduce.eval.sweep.pool import Processes

pytestmark = pytest.mark.usefixtures("toys")


def by_command(monkeypatch, tmp_path, methods, *more):
    """``sweep`` with the toy worker in place of the real one."""
    pytest.importorskip("lmms_eval", reason=NEEDS)
    monkeypatch.setattr("tokenreduce.cli.sweep._pool", lambda *_: Processes(1, tmp_path / "logs", "toy_worker"))
    (tmp_path / "grid.yaml").write_text(json.dumps({**BASIC, "methods": methods, "keep": [0.5]}))
    return call(tmp_path / "grid.yaml", "--out", tmp_path / "out", *more)


def test_cells_kept_as_failed_are_failed(tmp_path, monkeypatch):
    assert by_command(monkeypatch, tmp_path, ["pool"]).exit_code == 1
    kept = by_command(monkeypatch, tmp_path, ["pool"], "--keep-failed")
    assert kept.exit_code == 1
    assert "0 done, 2 were done before, 0 refused, 1 failed" in kept.output
    assert "a bad day" in kept.output


def test_a_refusal_is_told_once_in_full_with_the_cells_it_holds_for(tmp_path, monkeypatch):
    why = "ValueError: " + " ".join(f"word{i}" for i in range(90))
    monkeypatch.setenv("TOY_REFUSAL", why)
    found = by_command(monkeypatch, tmp_path, [{"method": "tome", "keep": [0.5, 0.25]}])
    assert found.output.count("refused, why is told at the end") == 2
    lines = found.output.splitlines()
    at = lines.index(f"refused: {why}")
    assert lines[at + 1 : at + 3] == ["  demo tr_demo_images tome keep=0.5", "  demo tr_demo_images tome keep=0.25"]
    assert found.output.count("word7 ") == 1


def misfitting(*_, **__):
    """What lmms-eval 0.7.3 does with a filelock that moved a module: an import out of its own file fails."""
    exec(compile("import filelock._moved", "lmms_eval/evaluator.py", "exec"), {"__name__": "lmms_eval.evaluator"})


def test_an_import_that_fails_names_both_packages(monkeypatch):
    pytest.importorskip("lmms_eval", reason=NEEDS)
    monkeypatch.setattr("tokenreduce.eval.harness.model.build", misfitting)
    error = Evaluator().evaluate(Cell("demo", "tr_demo_images")).error
    assert error["kind"] == MISFIT
    assert (
        f"lmms_eval {version('lmms_eval')} does not fit filelock {version('filelock')} (ModuleNotFound" in error["text"]
    )


def test_a_seam_that_changed_is_told_from_a_bad_day(monkeypatch):
    pytest.importorskip("lmms_eval", reason=NEEDS)

    def changed(*_, **__):
        raise seam_changed("transformers", "the cache's name", "cache", "store")

    monkeypatch.setattr("tokenreduce.eval.harness.model.build", changed)
    error = Evaluator().evaluate(Cell("demo", "tr_demo_images")).error
    assert error["kind"] == MISFIT
    assert "transformers" in error["text"]


def test_what_no_base_can_do_is_refused_before_a_model_is_loaded(monkeypatch):
    pytest.importorskip("lmms_eval", reason=NEEDS)
    monkeypatch.setattr("tokenreduce.eval.harness.model.build", misfitting)
    error = Evaluator().evaluate(Cell("demo", "scored_choices", include=(str(OWN_TASKS),))).error
    assert error["kind"] == "refused"
    assert "output_type: multiple_choice" in error["text"]


def test_packages_that_do_not_fit_stop_the_sweep_at_its_first_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_MISFIT", "lmms-eval 0.7.3 does not fit filelock 4.3.")
    found = by_command(monkeypatch, tmp_path, ["hiprune", "uniform"])
    assert found.exit_code == 1
    assert "lmms-eval 0.7.3 does not fit filelock 4.3. No cell was evaluated, and nothing was written" in found.output
    assert "Next:" not in found.output
    assert not Store(tmp_path / "out").everything()


def test_the_same_misfit_in_every_task_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_MISFIT", "lmms-eval 0.7.3 does not fit filelock 4.3.")
    grid = Grid.of({**BASIC, "tasks": ["tr_demo_images", "tr_demo_video"]})
    with pytest.raises(SweepFailed) as stopped:
        toy_run(grid, tmp_path / "out", slots=1)
    assert str(stopped.value).count("does not fit") == 1
    assert (tmp_path / "died").read_text().split() == ["tr_demo_images", "tr_demo_video"]  # once each
    assert not Store(tmp_path / "out").everything()


@pytest.mark.parametrize("failing", ["tr_demo_images", "tr_demo_video"])  # the first task, or the second
def test_a_task_that_fails_on_an_import_fails_at_once_and_the_others_run(tmp_path, monkeypatch, failing):
    monkeypatch.setenv("TOY_MISFIT", "needs a package")
    monkeypatch.setenv("TOY_MISFIT_TASK", failing)
    grid = Grid.of({**BASIC, "tasks": ["tr_demo_images", "tr_demo_video"]})
    told = []
    tally = toy_run(
        grid, tmp_path / "out", tell=lambda status, cell, outcome, tally: told.append((cell.task == failing, status))
    )
    assert (tmp_path / "died").read_text().split() == [failing]
    assert (tally.done, tally.failed, tally.left) == (7, 7, 0)
    assert sorted(told) == [(False, "done")] * 7 + [(True, "failed")] * 7
    assert sum("not tried again" in text for text in tally.errors.values()) == 6
    assert sum(c["status"] == "failed" for c in Store(tmp_path / "out").everything()) == 7


def test_a_sweep_with_nothing_done_has_no_report_to_make(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_ALL_FAIL", "1")
    found = by_command(monkeypatch, tmp_path, ["hiprune"])
    assert found.exit_code == 1
    assert "0 done" in found.output
    assert "Next:" not in found.output


def test_missing_extras_name_the_pip_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = call("--model", "demo", "--task", "tr_demo_images")
    assert found.exit_code == 2
    assert "pip install 'tokenreduce[eval]'" in found.output


def test_command_refuses_what_cannot_be_meant(tmp_path):
    pytest.importorskip("lmms_eval", reason=NEEDS)
    out = ("--out", tmp_path / "out", "--dry-run")
    for arguments, told in (
        ((), "neither a grid nor --model"),
        (("--model", "demo"), "says no tasks"),
        (("--model", "nowhere", "--task", "tr_demo_images"), "no folder here and no reachable hub model"),
        (("--model", "demo", "--task", "tr_demo_images", "--include-path", "nowhere"), "include_path='nowhere'"),
        (("--model", "demo", "--task", "tr_demo_images", "--model-args", "dtype"), "key=value"),
        ((tmp_path / "none.yaml",), "cannot be read"),
        (
            ("--model", "demo", "--task", "tr_demo_images", "--batch-size", 4),
            "answers one prompt at a time; allowed: 1",
        ),
        (("--model", "demo", "--task", "scored_choices", "--include-path", OWN_TASKS), "how likely given answers are"),
        (
            ("--model", "demo", "--task", "scored_likelihood_group", "--include-path", OWN_TASKS),
            "task scored_choices asks",
        ),
    ):
        found = call(*arguments, *out)
        assert found.exit_code == 2, found.output
        assert told in " ".join(found.output.split())
    assert not (tmp_path / "out").exists()


def test_dry_run_shows_cells_and_runs_none(tmp_path):
    pytest.importorskip("lmms_eval", reason=NEEDS)
    found = call("--model", "demo", "--task", "tr_demo_images", "--keep", "0.5", "--dry-run", "--out", tmp_path / "out")
    assert found.exit_code == 0
    assert "to do" in found.output
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_unknown_task_is_refused_with_the_nearest_name(tmp_path):
    pytest.importorskip("lmms_eval", reason=NEEDS)
    found = call("--model", "demo", "--task", "tr_demo_image", "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert "Did you mean tr_demo_images" in " ".join(found.output.split())
