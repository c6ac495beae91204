"""PruneSID: rows of a CLIP tower with their [CLS] attention, or merger outputs; loadings computed, or given."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.rows import take_rows
from tokenreduce.principal_groups import select


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    clip = params.one_of("function", {"clip": True, "qwen": False}, "clip")
    loading = inputs.get("loadings")
    return of_clip(inputs, params["keep"], loading) if clip else of_qwen(inputs["tokens"], params["per_576"], loading)


def of_clip(inputs: Meta[Tensor], keep: int, loading: Tensor | None) -> dict[str, Tensor]:
    hidden = inputs["hidden"]
    loading = None if loading is None else loading.expand(len(hidden), -1, -1)
    found = select(hidden[:, 1:], keep, inputs["attn"].sum(dim=1), cls=1, loading=loading)
    order = torch.cat([torch.zeros(len(hidden), 1, dtype=torch.long), found.order + 1], dim=1)
    return {
        "order": order,
        "tokens": take_rows(hidden, order),
        "groups": found.group,
        "nms_counts": found.left,
    }


def of_qwen(tokens: Tensor, need: int, loading: Tensor | None) -> dict[str, Tensor]:
    """Of all merger outputs of a call together; up to 16 are left alone, and more than 150 kept come in raster order."""
    n = len(tokens)
    keep = max(round(n * need / 576), 16)
    if n <= 16:
        return {"order": torch.arange(n)}
    found = select(tokens[None], keep, loading=None if loading is None else loading[None])
    order = found.order[0]
    return {"order": order.sort().values if len(order) > 150 else order, "groups": found.group[0]}
