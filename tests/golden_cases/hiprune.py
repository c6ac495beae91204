"""HiPrune: scores, attention maps with a [CLS], or maps of a windowed tower whose patches merge four by four."""

from __future__ import annotations

import dataclasses
from typing import Any

from golden_cases.common import FACTS, kept_mask, make, query_and_key, show
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.layout import Layout
from tokenreduce.method import ModelFacts
from tokenreduce.methods.hiprune import HiPrune
from tokenreduce.reduction import Reduction


def run(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if "reverse_indices" in inputs:
        return units(inputs, params)
    if "object_attention" in inputs:
        return maps(inputs, params)
    _, plan = select(inputs["object_scores"], inputs["deep_scores"], params)
    return outputs(plan)


def select(
    objects: Tensor, deep: Tensor, params: dict[str, Any], facts: ModelFacts = FACTS, **given: Any
) -> tuple[HiPrune, Reduction]:
    method = make(HiPrune, params, **given)
    assert isinstance(method, HiPrune)
    _, plan = show(method, [objects, deep], Layout(params["grid_h"], params["grid_w"]), facts=facts)
    return method, plan


def outputs(plan: Reduction) -> dict[str, Tensor]:
    assert plan.role is not None
    return {"keep_indices": plan.source, "keep_mask": kept_mask(plan), "roles": plan.role}


def maps(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """(M, H, 1 + N, 1 + N) maps: queries include the [CLS], its key is cut off afterwards."""
    depth, deep_layer = params["num_layers"], params["deep_layer"]
    facts = dataclasses.replace(FACTS, tower_depth=depth, feature_block=range(depth)[deep_layer])
    prefix = inputs["object_attention"].shape[-1] - inputs["features"].shape[1]
    objects, deep = (
        attention_received(*query_and_key(inputs[name]), 1.0)[:, prefix:]
        for name in ("object_attention", "deep_attention")
    )
    _, plan = select(objects, deep, params, facts, object_layer=params["object_layer_1based"])
    features = plan.carry(inputs["features"]) @ inputs["projector"]
    return outputs(plan) | {"object_scores": objects, "deep_scores": deep, "features": features}


def units(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """(H, P, P) maps in window order. The release sums over queries, so that scores average 1; ``keep`` in exact and in
    released form."""
    raster = inputs["reverse_indices"]

    def score(attention: Tensor) -> Tensor:
        received = attention_received(*query_and_key(attention[None]), 1.0)[0] * attention.shape[-1]
        return received.unflatten(0, (-1, params["merge_unit"])).mean(dim=1)[raster]

    objects, deep = score(inputs["object_attention"]), score(inputs["deep_attention"])
    if "keep_fraction" in params:
        assert Budget(params["keep_fraction"]).count(len(raster)) == params["keep"]
    _, exact = select(objects[None], deep[None], params)
    _, released = select(objects[None], deep[None], params, parity="release")
    return {
        "object_scores": objects,
        "deep_scores": deep,
        "keep_indices": exact.source[0],
        "reference_keep_indices": kept_mask(released)[0].nonzero().flatten(),
    }
