"""Whether visual tokens can leave behind a layer: what the model says then, beside what it says with all of them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

AGREEMENT = 0.99  # share of answer tokens that have to stay the most likely ones
LOSS = 1.03  # times the loss with all tokens


def can_leave(before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool: whether logits ``after`` (B, L, V) the exit say of the answer in ``labels`` (B, L) what those ``before`` say.

    Source: arXiv 2411.19628: more than 0.99 of the answer's tokens stay the most likely ones, and its loss stays below 1.03
        times that with all tokens.
    """
    wanted = labels[:, 1:]
    said = wanted != -100
    count = said.sum(dim=1)
    same = ((before[:, :-1].argmax(-1) == after[:, :-1].argmax(-1)) & said).sum(dim=1) / count
    old, new = (
        F.cross_entropy(logits[:, :-1].float().transpose(1, 2), wanted, reduction="none").sum(dim=1) / count
        for logits in (before, after)
    )
    return (same > AGREEMENT) & (new < LOSS * old)
