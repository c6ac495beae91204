"""VTC-CLS: [CLS] rows of every block, and the features of one."""

from __future__ import annotations

import dataclasses
from typing import Any

from golden_cases.common import FACTS, kept_mask, make, query_and_key, show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.layout import Layout
from tokenreduce.methods.vtc_cls import VTCCLS, ensemble


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    rows, hidden = inputs["cls_rows"], inputs["hidden"]  # (L, H, 1 + N) or (L, B, H, 1 + N); (B, 1 + N, C)
    single = rows.ndim == 3
    if single:
        rows = rows[:, None]
    end = params.get("end_layer_exclusive", len(rows) - 1)
    facts = dataclasses.replace(FACTS, tower_depth=len(rows), feature_block=end - 1)
    given = {"start": params["start_layer_0based"]} if "start_layer_0based" in params else {}
    given |= {"heads": params["head_reduce"]} if "head_reduce" in params else {}
    method = make(VTCCLS, params, **given)
    assert isinstance(method, VTCCLS)
    scores = []
    for block in method.blocks(facts):
        query, key = query_and_key(rows[block][:, :, None])
        scores.append(attention_row(query, key, 1.0, heads=method.heads)[:, 0, 1:])
    features = hidden[:, 1:]
    plan = show(method, scores, Layout(1, features.shape[1]), features, facts)[1]
    kept = plan.carry(features)
    found = {
        "scores": ensemble(scores, method.ensemble),
        "keep_indices": plan.source,
        "keep_mask": kept_mask(plan),
        "features": kept @ inputs["projector"] if "projector" in inputs else kept,
    }
    return {name: value[0] for name, value in found.items()} if single else found
