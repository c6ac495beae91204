"""The page on streaming says what the data says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_what_the_committed_measurements_give():
    spec = importlib.util.spec_from_file_location("stream", ROOT / "benchmarks/stream.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    data = json.loads(script.DATA.read_text())
    assert script.PAGE.read_text() == script.page(data), "run python benchmarks/stream.py --page"
