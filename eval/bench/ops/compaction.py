"""Rows of different numbers per image, moved together, against a loop over images."""

from __future__ import annotations

import torch

from tokenreduce.kernels.compaction import compact

from .case import Case

D = 4096
SIZES = [{"B": 1, "N": 576}, {"B": 16, "N": 576}, {"B": 4, "N": 2880}, {"B": 64, "N": 2880}]
CPU_LIMIT = 4 * 2880


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    batch, n = size["B"], size["N"]
    x = torch.randn(batch, n, D, device=device).to(dtype)
    kept = torch.randint(n // 10, n // 5, (batch,), device=device)
    k = int(kept.max())
    index = torch.rand(batch, n, device=device).argsort(dim=1)[:, :k].sort(dim=1).values
    valid = torch.arange(k, device=device) < kept[:, None]

    def plain() -> torch.Tensor:
        rows = [x[b, index[b, valid[b]]] for b in range(batch)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    return Case(
        lambda: compact(x, index, valid), plain, flops=0, bytes=2 * batch * k * D * x.element_size(), tolerance=0.0
    )
