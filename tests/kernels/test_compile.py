"""Every kernel compiles to machine code for a GPU, also where there is none, and takes no more of it than it did."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS, SCRIPT = ROOT / "kernels/triton", ROOT / "benchmarks/kernel_resources.py"
RECORDED = json.loads((ROOT / "benchmarks/results/kernel_resources.json").read_text())
SHARED = 99 * 1024  # bytes that one program may have on consumer devices, such as compute capability 8.6 and 8.9
FEW = 80  # bytes per thread: masked attention in 16 bits, on the devices that hold its sums apart from registers
NAMED = ("kernel", "variant", "head", "channels", "dtype", "target")


def kernels() -> set[str]:
    """Entry points are private, device functions are not."""
    text = "".join(path.read_text() for path in KERNELS.glob("*.py"))
    return set(re.findall(r"@triton\.jit.*\ndef (_\w+)", text))


@pytest.mark.slow
def test_every_kernel_compiles_without_a_gpu_and_spills_nothing(tmp_path) -> None:
    out, cache = tmp_path / "rows.json", {"TRITON_CACHE_DIR": str(tmp_path)}
    less = ["--targets", "90", "--dtypes", "float32", "--heads", "72", "--channels", "64"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *less, "--out", out], capture_output=True, text=True, env=os.environ | cache
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())["rows"]
    assert {row["kernel"] for row in rows} == kernels()
    before = {tuple(row.get(name) for name in NAMED): row for row in RECORDED["rows"]}
    for row in rows:
        assert row["local_bytes"] == 0, f"values of {row} spill to memory"
        assert row["shared_bytes"] <= SHARED, row
        if triton.__version__ == RECORDED["triton"]:
            was = before[tuple(row.get(name) for name in NAMED)]
            assert row["registers"] <= was["registers"], f"{row} took {was['registers']} registers"
            assert row["shared_bytes"] <= was["shared_bytes"], f"{row} took {was['shared_bytes']} bytes"


def test_what_was_recorded_spills_next_to_nothing_and_uses_tensor_cores() -> None:
    """On every device it was compiled for; products of float32 alone are made number by number."""
    rows = RECORDED["rows"]
    assert {row["target"] for row in rows} == {80, 90, 100}
    assert {row["kernel"] for row in rows} == kernels()
    assert not [row for row in rows if row["local_bytes"] > (0 if row["target"] == 90 else FEW)]
    assert max(row["shared_bytes"] for row in rows) <= SHARED
    products = {"_matching", "_energy", "_statistics", "_received", "_weights", "_step"}
    for row in rows:
        if row["kernel"] in products and row["dtype"] != "float32":
            assert row["products"] != "fma", row
