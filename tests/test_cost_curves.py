"""The work of methods grows with the number of tokens at most linearly, but for those whose papers compare all pairs."""

from __future__ import annotations

import json

import pytest
import torch
from scripts import script

CURVES = script("benchmarks/cost_curves.py")


@pytest.mark.parametrize("name", CURVES.measured())
@torch.inference_mode()
def test_work_is_linear_unless_the_page_says_why_not(name):
    rise = CURVES.work_power(CURVES.counted(name, (32, 64), channels=16))
    assert (rise > CURVES.LINEAR) == (name in CURVES.WHY), f"{name}: work rises by N to the {rise:.2f}"


def test_every_method_is_on_the_page():
    data = json.loads(CURVES.DATA.read_text())
    assert {row["method"] for row in data["rows"]} == set(CURVES.measured()), "run benchmarks/cost_curves.py"
    for row in data["rows"]:
        points = row["points"]
        whole = len(points) == len(CURVES.SIDES)
        assert [point["tokens"] for point in points] == [side * side for side in CURVES.SIDES[: len(points)]]
        assert whole or not CURVES.goes_on(points), "a curve ends where it would take too long, only"
        assert (CURVES.work_power(points) > CURVES.LINEAR) == (row["method"] in CURVES.WHY)
