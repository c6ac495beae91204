"""The page on performance says what the data says, and every measurement has its command."""

from __future__ import annotations

import json
from pathlib import Path

from scripts import script

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/bench"


def test_the_page_is_what_the_committed_measurements_give():
    made = script("benchmarks/performance.py")
    assert made.PAGE.read_text() == made.page(), "run python benchmarks/performance.py"


def test_every_measurement_has_its_command_and_its_surroundings():
    commands = json.loads((RESULTS / "commands.json").read_text())
    assert {path.name for path in RESULTS.glob("*.json")} == {*commands, "commands.json"}
    for name in commands:
        content = json.loads((RESULTS / name).read_text())
        assert content["kind"] == "tokenreduce bench"
        assert {"cpu", "threads", "torch", "transformers", "device"} <= set(content["environment"])
