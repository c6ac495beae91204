"""Change between adjacent frames against a cosine of whole videos."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tokenreduce.kernels.temporal_similarity import temporal_similarity

from .case import Case

C = 1024
SIZES = [{"T": 32, "N": 196}, {"T": 128, "N": 196}, {"T": 1024, "N": 196}]
CPU_LIMIT = 128 * 196


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    x = torch.randn(size["T"], size["N"], C, device=device).to(dtype)
    pairs = (size["T"] - 1) * size["N"]
    return Case(
        lambda: temporal_similarity(x),
        lambda: F.cosine_similarity(x[:-1].float(), x[1:].float(), dim=-1),
        flops=6 * pairs * C,
        bytes=x.nbytes + 4 * pairs,
        tolerance=1e-5,
    )
