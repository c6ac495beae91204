"""VisionZip: rows of a tower with a [CLS], or maps of a windowed tower whose patches merge four by four."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.common import query_and_key
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.rows import take_rows
from tokenreduce.methods.visionzip import averaged, select


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    merge = params.one_of("merge", ("add_mean", "mean"), "add_mean")
    if "attention" in inputs:
        params.one_of("variant", ("merged 2x2 units",), "merged 2x2 units")
        params.agree(has_cls=False)
        return units(inputs, params["dominant"], params["contextual"], merge)
    cls = int(params.get("has_cls", True))
    hidden, contextual = inputs["hidden"], params["contextual"]
    dominant = params["dominant_incl_cls"] - 1 if cls else params["dominant"]
    query, key = query_and_key(inputs["cls_rows"][:, :, None])
    score = attention_row(query, key, 1.0)[:, 0, cls:]
    best, target, row = select(score, inputs["metric"][:, cls:], dominant, contextual)
    slot = (row - dominant).clamp_min(-1)
    made = averaged(hidden[:, cls:], target, slot, merge) if contextual else hidden[:, :0]
    first = torch.zeros(len(hidden), cls, dtype=torch.long)
    return {
        "dominant_indices": torch.cat([first, best + cls], dim=1),
        "target_indices": target + cls,
        "assignment": torch.cat([first - 1, slot], dim=1),
        "tokens": torch.cat([hidden[:, :cls], take_rows(hidden[:, cls:], best), made], dim=1),
    }


def units(inputs: Meta[Tensor], dominant: int, contextual: int, merge: str) -> dict[str, Tensor]:
    """Scores are sums over queries, keys means over heads, both averaged over the four patches of a token."""
    attention, keys, embeds = inputs["attention"], inputs["keys"], inputs["embeds"]
    query, key = query_and_key(attention[None])
    patches = attention.shape[-1] // len(embeds)
    back = inputs["reverse_indices"]
    score = attention_received(query, key, 1.0, over="sum")[0].view(-1, patches).mean(dim=1)[back][None]
    metric = keys.unflatten(1, (-1, patches)).mean(dim=2).mean(dim=0)[back][None]
    best, target, row = select(score, metric, dominant, contextual)
    made = averaged(embeds[None], target, (row - dominant).clamp_min(-1), merge)
    positions, order = torch.cat([best, target], dim=1)[0].sort()
    return {
        "scores": score[0],
        "dominant_indices": best[0],
        "target_indices": target[0],
        "positions": positions,
        "tokens": torch.cat([embeds[best[0]], made[0]])[order],
    }
