"""Density peaks against the whole table of distances."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels.density_peaks import density_peaks

from .case import Case

C, NEIGHBOURS = 1024, 7
SIZES = [{"B": 1, "N": 196}, {"B": 1, "N": 576}, {"B": 4, "N": 576}, {"B": 1, "N": 4096}]
CPU_LIMIT = 4 * 576


def plain(x: Tensor, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Score (B, N) and distances (B, N, N) of the vectors ``x`` (B, N, C)."""
    y = x.float() / x.shape[-1] ** 0.5
    distance = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist")
    density = -distance.topk(min(neighbours, x.shape[1]), largest=False).values.square().mean(dim=-1)
    denser = density[:, None] > density[..., None]
    delta = torch.where(denser, distance, torch.inf).amin(dim=-1)
    delta = torch.minimum(delta, distance.amax(dim=(1, 2))[:, None])
    return density + delta.log(), distance


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    batch, n = size["B"], size["N"]
    clusters = max(n // 10, 1)
    x = torch.randn(batch, n, C, device=device).to(dtype)

    return Case(
        lambda: density_peaks(x, clusters, NEIGHBOURS).score,
        lambda: plain(x)[0],
        flops=3 * batch * n * n * C,
        bytes=x.nbytes + 16 * batch * n,
        tolerance=1e-3,
        note="ours also assigns every token to a centre",
    )
