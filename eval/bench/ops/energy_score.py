"""PiToMe's energy against the mean of the whole table."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tokenreduce.kernels.energy_score import energy_score

from .case import Case

C = 64
SIZES = [{"B": 1, "N": 577}, {"B": 16, "N": 577}, {"B": 1, "N": 4096}, {"B": 4, "N": 4096}, {"B": 1, "N": 16384}]
CPU_LIMIT = 4 * 4096
MARGIN = 0.5


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    batch, n = size["B"], size["N"]
    x = torch.randn(batch, n, C, device=device).to(dtype)

    def plain() -> torch.Tensor:
        unit = F.normalize(x.float(), dim=-1)
        return F.elu(unit @ unit.mT - MARGIN).mean(dim=-1)

    return Case(
        lambda: energy_score(x, MARGIN),
        plain,
        flops=batch * n * n * C * 2,
        bytes=x.nbytes + 4 * batch * n,
        tolerance=1e-5,
    )
