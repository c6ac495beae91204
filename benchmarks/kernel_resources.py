"""Compile every kernel for GPUs that need not be here, and count what each takes of one: nothing is launched.

python benchmarks/kernel_resources.py [--targets 80,90,100] [--dtypes float32,float16,bfloat16] [--heads ...] [--out FILE.json]

Runs in a process of its own, without Triton's interpreter: a stand-in driver names the target, and every launch becomes a
compilation to machine code for the sizes it was given, those of towers and projectors in use. Per kernel, sizes, dtype and
target: registers per thread, bytes of local memory per thread (0: nothing spills), bytes of shared memory per program.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from rich.progress import track
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

RESULTS = Path(__file__).parent / "results/kernel_resources.json"
TARGETS, DTYPES = (80, 90, 100), ("float32", "float16", "bfloat16")
HEADS = (64, 72, 80, 128, 256)  # CLIP, SigLIP, Qwen-VL's tower, language models, Gemma
CHANNELS = (64, 1024, 3584)  # keys of a head, features of a tower, features of a language model
N = 577


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


def taken(cubin: bytes) -> dict[str, int]:
    """What a kernel takes, by ``cuobjdump``."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([knobs.nvidia.cuobjdump.path, "-res-usage", file.name], text=True)
    registers, local = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
    return {"registers": registers, "local_bytes": local}


def products(ptx: str) -> str:
    """The instructions that make the matrix products: of tensor cores, or of single numbers."""
    found = re.search(r"\b(tcgen05\.mma|wgmma|mma\.sync)\b", ptx)
    return found[1] if found else "fma"


def compiled(
    rows: list[dict[str, Any]], seen: set[str], sizes: dict[str, Any]
) -> Callable[[JITFunction, Any], Callable[..., None]]:
    """Stands for the launch of a kernel: compiles it, and adds a row to ``rows`` where it was not ``seen`` yet."""

    def launch(kernel: JITFunction, grid: Any) -> Callable[..., None]:
        def compile_only(*args: Any, **kwargs: Any) -> None:
            made = kernel.warmup(*args, grid=grid, **kwargs)
            if made.hash not in seen:  # several variants and sizes share a kernel
                seen.add(made.hash)
                row = {"kernel": kernel.__name__, **sizes, "target": made.metadata.target.arch}
                rows.append(
                    row
                    | taken(made.asm["cubin"])
                    | {"shared_bytes": made.metadata.shared, "products": products(made.asm["ptx"])}
                )

        return compile_only

    return launch


def calls(
    dtype: torch.dtype, heads: Sequence[int], widths: Sequence[int]
) -> Iterator[tuple[str, dict[str, int], Callable[[], Any]]]:
    """Every launcher, once per variant and size: variant, sizes, call. No tensor is ever read or written."""
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

    weight, index, valid = torch.rand(2, N), torch.zeros(2, 64).long(), torch.ones(2, 64, dtype=torch.bool)
    count = torch.full((2,), 7)
    for channels in widths:
        x, size = torch.empty(2, N, channels, dtype=dtype), {"channels": channels}
        yield "two sides", size, lambda x=x: bipartite_matching(x, x[:, :288])
        yield "itself", size, lambda x=x: bipartite_matching(x, x, others_only=True)
        yield "margin", size, lambda x=x: energy_score(x, 0.5, 1.5, gaussian=False)
        yield "gaussian", size, lambda x=x: energy_score(x, 0.5, 1.5, gaussian=True)
        yield "mean", size, lambda x=x: group_mean(x, torch.zeros(2, N).long(), 9, None)
        yield "weighted", size, lambda x=x: group_mean(x, torch.zeros(2, N).long(), 9, weight)
        yield "all", size, lambda x=x: compact(x, index, None)
        yield "valid", size, lambda x=x: compact(x, index, valid)
        yield "frames", size, lambda x=x: temporal_similarity(x)
        yield "max-min", size, lambda x=x: max_min_selection(x, 1, None, None)
        yield "weighted max-min", size, lambda x=x: max_min_selection(x, 1, weight, None)
        yield "DPP", size, lambda x=x: dpp_selection(x, weight, 1, 1e-6)
        if dtype == torch.float32:
            yield "neighbours", size, lambda x=x: density_peaks.density(x, 7, count, count)
            yield "denser", size, lambda x=x: density_peaks.nearest_denser(x, weight)
            yield "centres", size, lambda x=x: density_peaks.nearest(x, x[:, :5])
    plain = dict.fromkeys(("visible", "bias", "place", "window", "query_mask", "spans")) | {"causal": False}
    visible, place = torch.ones(2, N, dtype=torch.bool), torch.zeros(2, N).long()
    masked = {**plain, "visible": visible, "causal": True, "place": place, "window": 9, "query_mask": visible}
    spans = torch.tensor([[0, N]]).expand(N, 2)
    for dim in heads:
        # as models hold them: heads beside each other in one row
        q, k = (
            torch.empty(2, N, heads * dim, dtype=dtype).unflatten(2, (heads, dim)).transpose(1, 2) for heads in (4, 2)
        )
        size = {"head": dim}
        yield (
            "one row",
            size,
            lambda q=q, k=k: attention_row(q[:, :, :1], k, 0.1, visible=None, bias=None, largest=False),
        )
        yield "all", size, lambda q=q, k=k: attention_received(q, k, 0.1, **plain, largest=False)
        for name, more in {
            "masked": {},
            "masked, biased": {"bias": weight},
            "masked, in place": {"place": None},
        }.items():
            yield name, size, lambda q=q, k=k, m=more: attention_received(q, k, 0.1, **{**masked, **m}, largest=True)
        seen = {"visible": visible[:, None].expand(-1, N, -1), "bias": weight, "largest": True}
        yield "masked rows", size, lambda q=q, k=k, seen=seen: attention_row(q, k, 0.1, **seen)
        walk = {"steps": 1, "visible": None, "causal": True, "place": None, "window": None}
        yield (
            "walk",
            size,
            lambda q=q, k=k, w=walk: attention_walk(q, k, 0.1, torch.ones(2, 4, N), visible.float(), **w),
        )
        for kind in (torch.int32, torch.int64):
            packed = {**plain, "spans": spans.to(kind), "largest": False}
            yield (
                f"packed, {str(kind)[6:]}",
                size,
                lambda q=q, k=k, p=packed: attention_received(q[:1], k[:1], 0.1, **p),
            )


def resources(
    targets: Sequence[int], dtypes: Sequence[str], heads: Sequence[int], widths: Sequence[int]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for target, name in track([*itertools.product(targets, dtypes)], "compiling"):
        driver.set_active(Elsewhere(target))
        for variant, size, call in calls(getattr(torch, name), heads, widths):
            launch = compiled(rows, seen, {"variant": variant, **size, "dtype": name})
            JITFunction.__getitem__ = launch  # type: ignore[method-assign]
            call()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument(
        "--targets", type=numbers, default=TARGETS, help="compute capabilities; 80: A100, 90: H100, 100: B200"
    )
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=DTYPES)
    parser.add_argument("--heads", type=numbers, default=HEADS, help="channels of a head of attention")
    parser.add_argument("--channels", type=numbers, default=CHANNELS, help="channels of a token")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    rows = resources(asked.targets, asked.dtypes, asked.heads, asked.channels)
    lines = ",\n".join(json.dumps(row) for row in rows)
    asked.out.write_text(f'{{"triton": "{triton.__version__}", "n": {N}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
