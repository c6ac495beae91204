"""Tokens kept by attention: the keys of the vision tower, and what the text attends to jointly or singly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenreduce.kernels.top_k import top_k

#: published (theta_g, theta_i) by the share of tokens kept on average: 192, 128 and 64 of 576
THRESHOLDS = {1 / 3: (0.001, 0.001), 2 / 9: (0.0012, 0.001), 1 / 9: (0.011, 0.01)}
PRESETS = {192: 1 / 3, 128: 2 / 9, 64: 1 / 9}


def key_set(score: Tensor, rate: float) -> Tensor:
    """(B, ceil(rate * N)) long: the keys among tokens of ``score`` (B, N), most attended first."""
    return top_k(score, max(1, math.ceil(rate * score.shape[1] - 1e-9)))


def published_thresholds(keep: float | int, share: float | None) -> tuple[float, float]:
    """theta_g and theta_i published for the share nearest to ``share`` of the patches; None: for exactly ``keep``.

    Errors: ``ValueError`` where none are published for ``keep``.
    """
    if share is None:
        share = PRESETS.get(keep, 0.0) if isinstance(keep, int) else keep
        if not any(math.isclose(share, known, abs_tol=1e-3) for known in (*THRESHOLDS, 1.0)):
            raise ValueError(
                f"keep={keep} has no published thresholds; allowed with mode='threshold': 192, 128, 64 or 1/3, 2/9, "
                "1/9. Pass global_threshold and individual_threshold, or mode='budget' for an exact count."
            )
    return THRESHOLDS[min(THRESHOLDS, key=lambda known: abs(known - share))]


def attended(total: Tensor, most: Tensor, theta_g: float, theta_i: float) -> Tensor:
    """(B, N) bool: tokens that the text attends to jointly, ``total`` (B, N), or singly, ``most`` (B, N)."""
    total = total.float()
    return (total >= theta_g * total.sum(dim=1, keepdim=True)) | (most.float() >= theta_i)


def urgency(total: Tensor, most: Tensor, theta_g: float, theta_i: float) -> Tensor:
    """(B, N) float32: at least 1 where ``attended``, and an order among tokens whatever the thresholds' scale."""
    total = total.float()
    share = total / total.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.maximum(share / theta_g, most.float() / theta_i)
