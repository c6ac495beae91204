"""Times that were taken once: found again under the same conditions only, whole whoever writes beside."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.measurements import conditions, known, measured_file, note
from tokenreduce.targets import _Asked


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def timed(monkeypatch):
    """What was put to the clock: twice as fast with half of the tokens."""
    asked = []
    monkeypatch.setattr(_Asked, "timed", lambda self, name, k: asked.append((name, k)) or self.most / k)
    return asked


def test_the_same_question_is_timed_once_until_it_is_forgotten(timed):
    model = llava()
    inputs = prompt(model, [1])

    def found(**more):
        return tr.budget_for(model, inputs, "hiprune", speedup=2.0, measured=True, **more)

    assert found() == 0.5
    once = len(timed)
    assert once > 0
    assert found() == 0.5
    assert len(timed) == once
    found(alpha=0.3)  # another method
    assert len(timed) == 2 * once
    tr.budget_for(model, prompt(model, [1, 1]), "hiprune", speedup=2.0, measured=True)  # another shape
    assert len(timed) == 3 * once
    model.bfloat16()
    found()
    assert len(timed) == 4 * once
    tr.clear_measured()
    assert not measured_file().exists()
    found()
    assert len(timed) == 5 * once
    tr.clear_measured()
    tr.clear_measured()


def test_what_was_kept_says_under_what_conditions():
    model = llava()
    note(conditions(model, prompt(model, [1]), tr.HiPrune()), 1.5)
    question = json.loads(measured_file().read_text())["question"]
    assert question["device"].startswith("cpu, ")
    assert question["dtypes"] == ["torch.float32"]
    assert question["inputs"]["pixel_values"][0] == 1
    assert question["method"]["name"] == "hiprune"


WRITER = """
import sys
from tokenreduce.measurements import note
for number in range(200):
    note({"writer": sys.argv[1], "number": number}, number)
"""


def test_processes_lose_nothing_of_each_other():
    running = [subprocess.Popen([sys.executable, "-c", WRITER, name]) for name in "ab"]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert all(known({"writer": name, "number": number}) == number for name in "ab" for number in range(200))


def test_a_line_that_was_cut_off_costs_nothing_but_itself():
    note({"a": 1}, 1.0)
    with measured_file().open("a") as file:
        file.write('{"key": "half')
    note({"b": 1}, 2.0)
    assert (known({"a": 1}), known({"b": 1}), known({"c": 1})) == (1.0, 2.0, None)


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "tokenreduce").write_text("a file in the place of the folder")
    note({"a": 1}, 1.0)
    assert known({"a": 1}) is None
