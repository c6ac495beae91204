"""The script that measures a GPU goes the same way without one, so that it works on the day that there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks/gpu.py"


def called(*arguments: str) -> subprocess.CompletedProcess:
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=hidden)


@pytest.mark.slow
def test_the_dry_run_measures_every_part(tmp_path) -> None:
    done = called("--dry", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(found) == {"run", "tests", "operations", "demo", "compiled"}
    run = found["run"]
    assert (run["dry"], run["failed"], run["left_out"]) == (True, {}, [])
    assert found["demo"]["rows"][0]["method"] == "fastervlm"
    assert "refused" not in found["compiled"]["rows"][0]
    page = (tmp_path / "page.md").read_text()
    assert "dry run, no measurement" in page
    assert page.count("\n| ---") == 3


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path) -> None:
    done = called("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "--dry" in done.stderr
    assert not (tmp_path / "out").exists()
    assert called("--dry").returncode == 2  # into the folder of the measurements
