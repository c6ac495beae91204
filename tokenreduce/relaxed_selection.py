"""A choice of k tokens that gradients can pass, while the module that scores them is trained."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.learned_module import Learned
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens

ROUNDS = 40  # of bisection


def soft_top_k(logits: Tensor, k: int, temperature: float) -> Tensor:
    """(B, N) in (0, 1), k in sum: sigmoid((logits - t) / temperature), t for each row such that it fits.

    Differentiable, also through t. k < N.
    """
    with torch.no_grad():
        span = 40 * temperature
        low, high = logits.amin(dim=1, keepdim=True) - span, logits.amax(dim=1, keepdim=True) + span
        for _ in range(ROUNDS):
            t = (low + high) / 2
            more = ((logits - t) / temperature).sigmoid().sum(dim=1, keepdim=True) > k
            low, high = torch.where(more, t, low), torch.where(more, high, t)
        share = ((logits - t) / temperature).sigmoid()
        slope = share * (1 - share)
        slope = slope / slope.sum(dim=1, keepdim=True).clamp_min(1e-12)
    # t changes with the logits as their mean does, weighted by the slope of each
    t = t + (slope * (logits - logits.detach())).sum(dim=1, keepdim=True)
    return ((logits - t) / temperature).sigmoid()


def relaxed(tokens: VisualTokens, logits: Tensor, k: int, learned: Learned) -> Reduction:
    """What training takes in place of the best ``k`` of ``logits`` (B, N) float32.

    ``straight_through``: the best k after Gumbel noise, each times 1, whose gradient is that of ``soft_top_k`` (Bengio et al.,
    arXiv 1308.3432; Jang et al., arXiv 1611.01144; Kool et al., arXiv 1903.06059). ``noise``: all tokens, each replaced by noise
    like it to the degree to which it would not be chosen (Schulz et al., arXiv 2001.00396).
    """
    uniform = learned.drawn(torch.rand, logits.shape).clamp(1e-6, 1 - 1e-6).to(logits.device)
    drawn = logits - learned.temperature * (-uniform.log()).log()
    share = soft_top_k(drawn, k, learned.temperature)
    features = tokens.features
    if learned.relax == "straight_through":
        plan = replace(Reduction.top(drawn.detach(), k), in_order=False)
        chosen = share.gather(1, plan.source)[..., None]
        plan.features = plan.carry(features) * (1 + chosen - chosen.detach()).to(features.dtype)
        return plan
    mean, deviation = features.mean(dim=1, keepdim=True), features.std(dim=1, keepdim=True)
    noise = learned.drawn(torch.randn, features.shape).to(features)
    share = share[..., None].to(features.dtype)
    plan = replace(Reduction.identity(tokens), in_order=False)  # rows are made anew
    plan.features = share * features + (1 - share) * (mean + deviation * noise).detach()
    return plan
