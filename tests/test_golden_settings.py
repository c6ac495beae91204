"""The drivers of the golden vectors, on settings that no file on disk has: other numbers, prefix rows, presets, layouts."""

from __future__ import annotations

import json
import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

import golden_settings
import numpy as np
import pytest
from golden_cases.vectors import check, load
from golden_settings.plain import Case

METHODS = sorted(module.name for module in pkgutil.iter_modules(golden_settings.__path__) if module.name != "plain")


@cache
def cases(method: str) -> dict[str, Case]:
    return import_module(f"golden_settings.{method}").cases()


def write(path: Path, method: str, case: Case) -> Path:
    inputs, params, expected = case
    arrays = {f"in_{name}": value for name, value in inputs.items()}
    arrays |= {f"out_{name}": value for name, value in expected.items()}
    np.savez(path, meta=json.dumps({"method": method, "params": params}), **arrays)
    return path


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in METHODS for name in cases(method)])
def test_other_settings(method: str, name: str, tmp_path: Path) -> None:
    vector = load(write(tmp_path / "vector.npz", method, cases(method)[name]))
    assert vector.expected
    wrong = check(method, vector)
    assert not wrong, "\n".join(wrong)
