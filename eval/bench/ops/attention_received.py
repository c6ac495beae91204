"""Attention received against the mean over rows of the whole attention map."""

from __future__ import annotations

import torch

from tokenreduce.kernels.attention_received import attention_received

from .case import Case

H, HEAD = 16, 64
SIZES = [{"B": 1, "N": 577}, {"B": 8, "N": 577}, {"B": 1, "N": 1024}, {"B": 1, "N": 4096}, {"B": 1, "N": 16384}]
CPU_LIMIT = 8 * 577


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    batch, n = size["B"], size["N"]
    query, key = (torch.randn(batch, H, n, HEAD, device=device).to(dtype) for _ in range(2))

    def plain() -> torch.Tensor:
        return (query.float() @ key.float().mT * HEAD**-0.5).softmax(dim=-1).mean(dim=(1, 2))

    return Case(
        lambda: attention_received(query, key, HEAD**-0.5),
        plain,
        flops=batch * H * n * n * HEAD * 2,
        bytes=query.nbytes + key.nbytes + 4 * batch * n,
        tolerance=1e-6,
    )
