"""VisPruner: [CLS] rows and what enters the projector."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.common import kept_mask, make, query_and_key, show, with_cls_key
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.layout import Layout
from tokenreduce.methods.vispruner import VisPruner


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    method = make(VisPruner, params)
    assert isinstance(method, VisPruner)
    query, key = query_and_key(with_cls_key(inputs["cls_attn"])[:, :, None])
    score, features = attention_row(query, key, 1.0)[:, 0, 1:], inputs["features"]
    params.agree(num_important=int(method.budget.count(score.shape[1]) * method.important_ratio))
    if method.is_identity(score.shape[1]):
        raise ValueError("keep names all tokens, which a pipeline does not ask about")
    _, plan = show(method, [score, features], Layout(1, score.shape[1]))
    assert plan.role is not None
    return {
        "keep_indices": plan.source,
        "keep_mask": kept_mask(plan),
        "important_mask": plan.role == 1,
        "features": torch.stack([x[i] for x, i in zip(features, plan.source)]),
    }
