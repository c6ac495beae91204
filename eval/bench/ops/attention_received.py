"""Attention received against the mean over rows of the whole attention map.

S segments of L tokens are one packed sequence: the windows, or the images, of a tower of Qwen2.5-VL. The plain form of
those is the whole map with all but the block diagonal hidden.
"""

from __future__ import annotations

import torch

from tokenreduce.kernels.attention_received import attention_received

from .case import Case

H, HEAD, PACKED_HEAD = 16, 64, 80
SIZES = [
    {"B": 1, "N": 577},
    {"B": 8, "N": 577},
    {"B": 1, "N": 1024},
    {"B": 1, "N": 4096},
    {"B": 1, "N": 16384},
    {"S": 81, "L": 64},
    {"S": 4, "L": 1296},
]
CPU_LIMIT = 81 * 64


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    if "S" in size:
        return packed(size["S"], size["L"], device, dtype)
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


def packed(segments: int, length: int, device: torch.device, dtype: torch.dtype) -> Case:
    n, scale = segments * length, PACKED_HEAD**-0.5
    query, key = (torch.randn(1, H, n, PACKED_HEAD, device=device).to(dtype) for _ in range(2))
    cuts = torch.arange(0, n + 1, length, dtype=torch.int32, device=device)

    def plain() -> torch.Tensor:
        own = torch.arange(n, device=device) // length
        logits = (query.float() @ key.float().mT * scale).masked_fill(own[:, None] != own, float("-inf"))
        return logits.softmax(dim=-1).sum(dim=2).mean(dim=1) / length

    return Case(
        lambda: attention_received(query, key, scale, cuts=cuts),
        plain,
        flops=segments * H * length * length * PACKED_HEAD * 2,
        bytes=query.nbytes + key.nbytes + 4 * n,
        tolerance=1e-6,
        note=f"a packed sequence of {n} tokens; the plain form masks the whole map",
    )
