"""The page on performance says what the data says, and every measurement has its command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/bench"


def test_the_page_is_what_the_committed_measurements_give():
    spec = importlib.util.spec_from_file_location("performance", ROOT / "benchmarks/performance.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.page(), "run python benchmarks/performance.py"


def test_every_measurement_has_its_command_and_its_surroundings():
    commands = json.loads((RESULTS / "commands.json").read_text())
    assert {path.name for path in RESULTS.glob("*.json")} == {*commands, "commands.json"}
    for name in commands:
        content = json.loads((RESULTS / name).read_text())
        assert content["kind"] == "tokenreduce bench"
        assert {"cpu", "threads", "torch", "transformers", "device"} <= set(content["environment"])
