"""Size-weighted merging of given groups against a scatter of numbers."""

from __future__ import annotations

import torch

from tokenreduce.kernels.group_mean import group_mean

from .case import Case

D = 1024
SIZES = [{"B": 1, "N": 577}, {"B": 16, "N": 577}, {"B": 1, "N": 4096}, {"B": 4, "N": 4096}, {"B": 16, "N": 16384}]
CPU_LIMIT = 4 * 4096


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    batch, n = size["B"], size["N"]
    k = n // 2
    x = torch.randn(batch, n, D, device=device).to(dtype)
    weight = torch.rand(batch, n, device=device) + 0.1
    assign = torch.cat(
        [torch.arange(k, device=device).expand(batch, -1), torch.randint(k, (batch, n - k), device=device)], 1
    )

    def plain() -> torch.Tensor:
        index = assign[..., None].expand(-1, -1, D)
        total = x.new_zeros(batch, k, D, dtype=torch.float32).scatter_add_(1, index, x.float() * weight[..., None])
        return (total / total.new_zeros(batch, k).scatter_add_(1, assign, weight)[..., None]).to(dtype)

    return Case(
        lambda: group_mean(x, assign, k, weight),
        plain,
        flops=2 * x.numel(),
        bytes=x.nbytes * (1 + k / n) + 12 * batch * n,
        tolerance=1e-4 if dtype == torch.float32 else 5e-2,
        note=f"{n} tokens of {D} channels into {k}",
    )
