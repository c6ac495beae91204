"""Compile every kernel for GPUs that need not be here: PTX and machine code for two generations, nothing is launched.

python tests/kernels/compile_kernels.py [80 | 90] [float16 ...]

Runs in a process of its own, without Triton's interpreter: a stand-in driver names the target, and every launch becomes a
compilation for the tensors it was given. Prints a line per kernel, dtype and target.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

TARGETS = (80, 90)


class Elsewhere:
    """A driver of a GPU that is not here."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(kernel: JITFunction, grid: Any) -> Callable[..., None]:
    def compile_only(*args: Any, **kwargs: Any) -> None:
        made = kernel.warmup(*args, grid=grid, **kwargs)
        dtype = next(str(a.dtype) for a in args if isinstance(a, Tensor))
        assert made.asm["cubin"]
        print(kernel.__name__, dtype, made.metadata.target.arch, f"shared={made.metadata.shared}")

    return compile_only


def calls(dtype: torch.dtype) -> None:
    """Every launcher, once per variant."""
    from tokenreduce.kernels.triton import density_peaks
    from tokenreduce.kernels.triton.attention_received import attention_received
    from tokenreduce.kernels.triton.attention_row import attention_row
    from tokenreduce.kernels.triton.attention_walk import attention_walk
    from tokenreduce.kernels.triton.bipartite_matching import bipartite_matching
    from tokenreduce.kernels.triton.compaction import compact
    from tokenreduce.kernels.triton.energy_score import energy_score
    from tokenreduce.kernels.triton.greedy_selection import dpp_selection, max_min_selection
    from tokenreduce.kernels.triton.group_mean import group_mean
    from tokenreduce.kernels.triton.temporal_similarity import temporal_similarity

    x = torch.randn(2, 130, 72).to(dtype)
    index = torch.randint(0, 130, (2, 50))
    bipartite_matching(x, x[:, :90])
    bipartite_matching(x, x, others_only=True)
    for gaussian in (False, True):
        energy_score(x, 0.5, 1.5, gaussian=gaussian)
    for weight in (None, torch.rand(2, 130)):
        group_mean(x, torch.randint(-1, 9, (2, 130)), 9, weight)
    for valid in (None, torch.rand(2, 50) < 0.5):
        compact(x, index, valid)
    temporal_similarity(x)
    for weight in (None, torch.rand(2, 130)):
        max_min_selection(x, 2, weight, None)
    dpp_selection(x, torch.ones(2, 130), 2, 1e-6)
    if dtype == torch.float32:
        density, _ = density_peaks.density(x, 7)
        density_peaks.nearest_denser(x, density)
        density_peaks.nearest(x, x[:, :5])
    query, key = torch.randn(2, 4, 130, 64).to(dtype), torch.randn(2, 2, 130, 64).to(dtype)
    visible, bias, place = torch.ones(2, 130, dtype=torch.bool), torch.ones(2, 130), torch.zeros(2, 130).long()
    attention_row(query[:, :, :1], key, 0.1, visible=None, bias=None, largest=False)
    attention_row(query, key, 0.1, visible=visible[:, None].expand(-1, 130, -1), bias=bias, largest=True)
    plain = {"visible": None, "bias": None, "causal": False, "place": None, "window": None, "query_mask": None}
    plain["spans"] = None
    attention_received(query, key, 0.1, **plain, largest=False)
    mass, real = torch.ones(query.shape[0], query.shape[1], key.shape[2]), torch.ones(query.shape[0], query.shape[2])
    attention_walk(query, key, 0.1, mass, real, steps=1, visible=None, causal=True, place=None, window=None)
    masked = {**plain, "visible": visible, "causal": True, "place": place, "window": 9, "query_mask": visible}
    for more in ({}, {"bias": bias}, {"place": None}):
        attention_received(query, key, 0.1, **{**masked, **more}, largest=True)
    spans = torch.tensor([0, 70]).repeat_interleave(torch.tensor([70, 60]))
    spans = torch.stack([spans, torch.where(spans == 0, 70, 130)], dim=1)
    for kind in (torch.int32, torch.int64):
        attention_received(query[:1], key[:1], 0.1, **{**plain, "spans": spans.to(kind)}, largest=False)


def main() -> None:
    JITFunction.__getitem__ = lambda kernel, grid: compiled(kernel, grid)  # type: ignore[method-assign]
    targets = [int(a) for a in sys.argv[1:] if a.isdigit()] or TARGETS
    dtypes = [a for a in sys.argv[1:] if not a.isdigit()] or ("float32", "float16", "bfloat16")
    for capability in targets:
        driver.set_active(Elsewhere(capability))
        for name in dtypes:
            calls(getattr(torch, name))
    print("compiled", triton.__version__, file=sys.stderr)


if __name__ == "__main__":
    main()
