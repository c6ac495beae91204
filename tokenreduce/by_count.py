"""One plan for images of which each keeps a number of tokens of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.reduction import Reduction


def by_count(counts: Tensor, ask: Callable[[Tensor, int], Reduction]) -> Reduction:
    """The plans of ``ask(index, k)`` about the images ``index`` (b,) long that keep ``k``, one after another, as one of all.

    Args:
        counts: (B,) long, looked at on the host.
        ask: answers with plans of one kind, without features of their own, that leave equally many rows of each image.
    """
    kinds = sorted(set(counts.tolist()))
    index = [(counts == k).nonzero()[:, 0] for k in kinds]
    plans = [ask(own, k) for own, k in zip(index, kinds)]
    most = max(plan.num_kept for plan in plans)
    whole = torch.cat(index).argsort()

    def joined(name: str) -> Tensor | None:
        own = [getattr(plan, name) for plan in plans]
        return None if own[0] is None else torch.cat(own)[whole]

    kept = torch.cat([torch.full_like(own, plan.num_kept) for own, plan in zip(index, plans)])[whole]
    source = torch.cat([F.pad(plan.source, (0, most - plan.num_kept)) for plan in plans])[whole]
    assign = joined("assign")
    assert assign is not None
    return replace(
        plans[0],
        source=source,
        assign=assign,
        valid=torch.arange(most, device=counts.device) < kept[:, None],
        weight=joined("weight"),
        role=joined("role"),
        score=joined("score"),
    )
