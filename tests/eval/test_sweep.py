"""Sweeps: nothing is lost or doubled whatever happens."""

from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
import threading
import time

import pytest
from sweep_grids import BASIC, NEEDS, call, toy_run
from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.results import write_json
from tokenreduce.eval.sweep import Grid, Store, SweepFailed, store

pytestmark = pytest.mark.usefixtures("toys")


def test_cells_that_raise_die_or_are_refused_are_recorded_and_the_rest_goes_on(tmp_path):
    grid = Grid.of({**BASIC, "methods": ["fastv", "pool", "tome", "pitome", "hiprune"], "keep": [0.5]})
    told = []
    tally = toy_run(
        grid, tmp_path / "out", tell=lambda status, cell, outcome, tally: told.append((status, str(cell.recipe)))
    )
    assert (tally.done, tally.refused, tally.failed, tally.left) == (4, 1, 2, 0)
    assert {name: status for status, name in told} == {
        "unreduced": "done", "random keep=0.5": "done", "hiprune keep=0.5": "done", "fastv keep=0.5": "done",
        "pool keep=0.5": "failed", "tome keep=0.5": "refused", "pitome keep=0.5": "failed",
    }  # fmt: skip
    kept = {str(Recipe.from_dict(c["cell"]["recipe"])): c for c in Store(tmp_path / "out").everything()}
    assert kept["pool keep=0.5"]["error"]["text"] == "RuntimeError: a bad day"
    assert "exit code 3" in kept["pitome keep=0.5"]["error"]["text"]
    again = toy_run(grid, tmp_path / "out")  # takes up what failed, and nothing else
    assert (again.skipped, again.done, again.refused, again.failed) == (4, 0, 1, 2)
    kept = {str(Recipe.from_dict(c["cell"]["recipe"])): c for c in Store(tmp_path / "out").everything()}
    assert len(kept["pool keep=0.5"]["attempts"]) == 1
    left = toy_run(grid, tmp_path / "out", retry=False)
    assert (left.skipped, left.done, left.refused, left.failed, left.kept, left.left) == (4, 0, 1, 2, 3, 0)
    assert left.errors["demo tr_demo_images pool keep=0.5"] == "raised: RuntimeError: a bad day"


def test_several_workers_give_what_one_gives(tmp_path):
    toy_run(Grid.of(BASIC), tmp_path / "one")
    toy_run(Grid.of(BASIC), tmp_path / "three", slots=3)
    assert results(tmp_path / "one") == results(tmp_path / "three")


def results(out):
    return {c["key"]: (c["status"], c.get("result")) for c in Store(out).everything()}


DRIVER = """
import sys
from pathlib import Path
from tokenreduce.eval.sweep import Grid, run
from tokenreduce.eval.sweep.evaluator import MISFIT, Evaluator
from tokenreduce.eval.sweep.pool import Processes
out = Path(sys.argv[1])
print(run(Grid.read(Path(sys.argv[2])), out, Processes(2, out / "logs", "toy_worker"), retry=False).done)
"""


def test_killed_at_random_moments_and_resumed_it_equals_the_undisturbed_run(tmp_path, monkeypatch):
    grid = {
        **BASIC,
        "tasks": ["tr_demo_images", "tr_demo_video", "tr_demo_crowd"],
        "methods": ["hiprune", "fastv", "pool"],
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    toy_run(Grid.of(grid), tmp_path / "plain", retry=False)
    monkeypatch.setenv("TOY_SECONDS", "0.15")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "killed"), str(tmp_path / "grid.yaml")]
    chance, counts = random.Random(3), []
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        cells_before = len(list((tmp_path / "killed").glob("cells/*.json")))
        deadline = time.time() + 60
        while len(list((tmp_path / "killed").glob("cells/*.json"))) < cells_before + 1 and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.wait()
        counts.append(len(results(tmp_path / "killed")))
    assert counts == sorted(counts)
    assert counts[0] < len(Grid.of(grid).cells)
    left = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert left <= len(Grid.of(grid).cells) - counts[-1]
    assert results(tmp_path / "killed") == results(tmp_path / "plain")
    assert {f.suffix for f in (tmp_path / "killed/cells").iterdir() if f.name != ".lock"} == {".json"}


def test_a_full_disk_stops_with_words_and_loses_nothing(tmp_path, monkeypatch):
    written = []

    def full(file, content):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        write_json(file, content)

    monkeypatch.setattr(store, "write_json", full)
    with pytest.raises(SweepFailed, match=r"No space left on device.*2 results before it are whole"):
        toy_run(Grid.of(BASIC), tmp_path / "out")
    monkeypatch.setattr(store, "write_json", write_json)
    tally = toy_run(Grid.of(BASIC), tmp_path / "out")
    assert (tally.skipped, tally.done) == (2, 5)


def test_one_sweep_at_a_time_and_no_foreign_folder(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no folder of a sweep"):
        Store(tmp_path / "theirs")
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with Store(tmp_path / "out").locked():
            entered.set()
            leave.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    entered.wait(20)
    try:
        with pytest.raises(ValueError, match="another sweep"), Store(tmp_path / "out").locked():
            pass
    finally:
        leave.set()
        other.join()


@pytest.mark.parametrize("content", ["", '{"key": "tr', "\x00\xff", "[]", '{"cell": {}}', '{"status": "done"}', "null"])
def test_a_broken_file_is_named_kept_aside_and_done_again(tmp_path, content):
    grid, out = Grid.of({**BASIC, "keep": [0.5]}), tmp_path / "out"
    toy_run(grid, out)
    before, file = results(out), Store(out).file(grid.cells[1])
    file.write_bytes(content.encode("latin-1"))
    assert len(Store(out).everything()) == 3
    assert list(Store(out).find_broken()) == [file]
    again = toy_run(grid, out)
    assert (again.skipped, again.done, list(again.broken)) == (3, 1, [file])
    assert (out / "cells/broken" / file.name).read_bytes() == content.encode("latin-1")
    assert results(out) == before
    assert not toy_run(grid, out).broken


def test_a_cell_under_another_cells_name_is_broken(tmp_path):
    grid, out = Grid.of({**BASIC, "keep": [0.5]}), tmp_path / "out"
    toy_run(grid, out)
    first, second = (Store(out).file(cell) for cell in grid.cells[:2])
    second.write_text(first.read_text())
    assert toy_run(grid, out).done == 1


def test_broken_files_do_not_stop_a_preview_or_a_report(tmp_path):
    pytest.importorskip("lmms_eval", reason=NEEDS)
    flags = {**BASIC, "keep": [0.5]}
    toy_run(Grid.of(flags), tmp_path / "out")
    (tmp_path / "grid.yaml").write_text(json.dumps(flags))
    broken = tmp_path / "out/cells/feed.json"
    broken.write_text("{")
    previewed = CliRunner().invoke(
        app, ["report", str(tmp_path / "out"), "--format", "csv", "--out", str(tmp_path / "report")]
    )
    assert previewed.exit_code == 0, previewed.output
    assert f"broken: {broken}" in " ".join(previewed.output.split())
    Store(tmp_path / "out").file(Grid.of(flags).cells[0]).write_text("")
    shown = call(tmp_path / "grid.yaml", "--out", tmp_path / "out", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "1 to do" in shown.output
    assert "counted as not done" in " ".join(shown.output.split())


def test_one_real_evaluation_from_the_command_to_the_store(tmp_path):
    pytest.importorskip("lmms_eval", reason=NEEDS)
    flags = ("--model", "demo", "--task", "tr_demo_images", "--method", "random", "--keep", "0.5", "--limit", "2")
    found = call(*flags, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "Next: tokenreduce report" in found.output
    kept = Store(tmp_path / "out").everything()
    assert sorted(c["result"]["measured"]["tokens_kept"] for c in kept) == [72, 144]
    assert [len(c["result"]["questions"]) for c in kept] == [2, 2]


@pytest.mark.long
def test_ray_equals_serial(tmp_path):
    pytest.importorskip("lmms_eval", reason=NEEDS)
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'tokenreduce[ray]'")
    flags = (
        "--model",
        "demo",
        "--task",
        "tr_demo_images",
        "--method",
        "hiprune",
        "--keep",
        "0.25,0.11",
        "--limit",
        "8",
    )
    assert call(*flags, "--out", tmp_path / "serial").exit_code == 0
    assert call(*flags, "--out", tmp_path / "ray", "--ray", "local", "--workers", "2").exit_code == 0

    def timeless(out):
        times = ("ttft_ms", "generate_ms", "method_ms")
        rows = {c["key"]: c["result"]["questions"] for c in Store(out).everything()}
        return {key: [{k: v for k, v in row.items() if k not in times} for row in found] for key, found in rows.items()}

    assert timeless(tmp_path / "serial") == timeless(tmp_path / "ray")
