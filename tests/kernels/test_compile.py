"""Every kernel compiles to machine code for a GPU, also where there is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parent.parent / "kernels/triton"


@pytest.mark.slow
def test_every_kernel_compiles_without_a_gpu(tmp_path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, HERE / "compile_kernels.py", "90", "float32"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = {(line.split()[0], line.split()[2]) for line in done.stdout.splitlines()}
    # entry points are private, device functions are not
    wanted = re.findall(r"@triton\.jit.*\ndef (_\w+)", "".join(path.read_text() for path in KERNELS.glob("*.py")))
    assert made == {(name, "90") for name in wanted}
