"""Golden vectors: what the methods' pages promise, computed by an independent route, against the library's code."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases.vectors import Meta, check, difference, differences, find, load

from tokenreduce.registry import registry


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "vector_path" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden-dir") or Path(__file__).parent / "golden"
        paths = find(folder)
        if not paths:
            raise pytest.UsageError(f"--golden-dir {folder} holds no vectors; expected DIR/<method>/<case>.npz")
        metafunc.parametrize("vector_path", paths.values(), ids=paths.keys())


def test_golden(vector_path: Path) -> None:
    method = vector_path.parent.name
    if find_spec(f"golden_cases.{method}") is None:
        if method not in registry():
            pytest.skip(f"method {method} is not part of this release")
        pytest.fail(f"method {method} has golden vectors but no driver tests/golden_cases/{method}.py")
    vector = load(vector_path)
    assert vector.expected, f"{vector_path} expects nothing"
    wrong = check(method, vector)
    assert not wrong, "\n".join(wrong)


def test_every_golden_method_of_this_repository_is_registered() -> None:
    own = {case.partition("/")[0] for case in find(Path(__file__).parent / "golden")}
    assert own
    assert own <= set(registry())


def test_comparison_notices_what_it_must() -> None:
    ints, floats = np.array([[0, 2, 5]]), np.array([1e-3, 1.0], dtype=np.float32)
    assert difference(ints, ints.copy()) is None
    assert "first at (0, 1): expected 2, got 3" in str(difference(ints, np.array([[0, 3, 5]])))
    assert difference(ints, np.array([[0, 5, 2]])) is not None
    assert difference(ints, np.array([[0, 5, 2]]), unordered=True) is None
    assert difference(ints, ints[0]) is not None
    assert difference(ints, ints.astype(np.float32)) is not None
    assert difference(floats, floats + np.float32(1e-6)) is None
    assert difference(floats, floats + np.float32(1e-3)) is not None
    assert difference(floats, np.array([np.nan, 1.0], dtype=np.float32)) is not None
    assert differences({"keep": ints}, {"other": torch.zeros(1)}) != []
    assert differences({"keep": ints}, {"keep": torch.from_numpy(ints)}) == []


def test_another_folder_can_be_named_in_a_plain_call(tmp_path: Path) -> None:
    """``pytest -k golden --golden-dir DIR`` from the root, DIR outside of it: not mistaken for a place of tests."""
    own = Path(__file__).resolve().parent / "golden/fastervlm/keep_one.npz"
    (tmp_path / "fastervlm").mkdir()
    (tmp_path / "fastervlm/other.npz").write_bytes(own.read_bytes())
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-k", "golden", "--golden-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True)
    if "unrecognized arguments" in done.stderr:
        pytest.skip("the package is not installed here, so its pytest option is not known early enough")
    assert "[fastervlm/other]" in done.stdout, done.stdout + done.stderr


def test_what_a_driver_does_not_read_fails_by_name(tmp_path: Path) -> None:
    own = load(Path(__file__).parent / "golden/fastervlm/keep_one.npz")
    assert check("fastervlm", own) == []
    given = {f"in_{name}": own.inputs[name].numpy() for name in own.inputs}
    meta = {"method": "fastervlm", "params": {**own.params, "sharpen": 2}, "notes": "", "shapes": {}, "seed": 1}
    path = tmp_path / "other.npz"
    np.savez(path, meta=json.dumps(meta), in_bias=np.zeros(3), **given)
    assert [line.partition(";")[0] for line in check("fastervlm", load(path))] == [
        "input bias was not read by the driver",
        "parameter sharpen was not read by the driver",
    ]
    np.savez(path, meta=json.dumps({**meta, "dtype": "float16"}), **given)
    with pytest.raises(ValueError, match=r"meta of .*other.npz says \['dtype'\]; allowed: params, method"):
        load(path)


def test_parameters_are_read_one_by_one() -> None:
    params = Meta("parameter", {"keep": 3, "video": True, "pool": "average", "rest": None})
    assert "keep" in params
    assert params.unread == ["keep", "video", "pool", "rest"]
    assert (params["keep"], params.get("alpha", 0.1)) == (3, 0.1)
    params.agree(video=True, side=4)
    with pytest.raises(ValueError, match=r"parameter keep=3, but the arrays and the other parameters say 4"):
        params.agree(keep=4)
    with pytest.raises(ValueError, match=r"parameter pool='average'; this driver honours: 'max', 'none'"):
        params.one_of("pool", ("max", "none"), "none")
    assert params.one_of("pool", {"average": 2}, "average") == 2
    assert params.unread == ["rest"]
    params.noted("rest", "seed")
    assert params.unread == []
    assert Meta("input", {"sd.w": 1, "sd.b": 2, "x": 3}).starting("sd.") == {"w": 1, "b": 2}
