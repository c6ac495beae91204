"""The grid of most tests of sweeps."""

from __future__ import annotations

from pathlib import Path

NEEDS = "lmms-eval is not installed; pip install 'tokenreduce[eval]'"


OWN_TASKS = Path(__file__).parent / "eval/tasks"


BASIC = {"model": "demo", "tasks": ["tr_demo_images"], "methods": ["hiprune", "uniform"], "keep": [0.5, 0.25]}
