"""HiPrune: scores, attention maps with a [CLS], or maps of a windowed tower whose patches merge four by four."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from golden_cases.common import FACTS, kept_mask, make, query_and_key, show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.layout import Layout
from tokenreduce.methods.hiprune import HiPrune
from tokenreduce.reduction import Reduction


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    params.one_of("variant", ("llava", "qwen2_5_vl"), "llava")  # of the release, which has no HiPrune++
    if "object_attention" not in inputs:
        return outputs(select(inputs["object_scores"], inputs["deep_scores"], params))
    return maps(inputs, params) if inputs["object_attention"].ndim == 4 else units(inputs, params)


def select(objects: Tensor, deep: Tensor, params: Meta[Any], **given: Any) -> Reduction:
    """The plan for scores (B, N) of the two blocks."""
    depth = params.get("num_layers", FACTS.tower_depth)
    feature_block = range(depth)[params.get("deep_layer", -2)]
    facts = dataclasses.replace(FACTS, tower_depth=depth, feature_block=feature_block)
    images, n = objects.shape
    if "object_layer_1based" in params:
        given["object_layer"] = params["object_layer_1based"]
    method = make(HiPrune, params, images, variant=None, **given)
    assert isinstance(method, HiPrune)
    k, width = method.budget.count(n), params["grid_w"]
    params.agree(grid_h=n // width, num_anchors=round(k * method.alpha / 5))
    if "keep_fraction" in params and params["keep_fraction"] != method.keep:
        assert round(params["keep_fraction"] * n) == k
    return show(method, [objects, deep], Layout(n // width, width), facts=facts)[1]


def outputs(plan: Reduction) -> dict[str, Tensor]:
    assert plan.role is not None
    return {"keep_indices": plan.source, "keep_mask": kept_mask(plan), "roles": plan.role}


def maps(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """(M, H, P + N, P + N) maps: queries include the P prefix rows, their keys are cut off afterwards."""
    prefix = inputs["object_attention"].shape[-1] - params["grid_h"] * params["grid_w"]
    objects, deep = (
        attention_received(*query_and_key(inputs[name]), 1.0)[:, prefix:]
        for name in ("object_attention", "deep_attention")
    )
    plan = select(objects, deep, params)
    found = outputs(plan) | {"object_scores": objects, "deep_scores": deep}
    if "features" in inputs:
        features = plan.carry(inputs["features"])
        found["features"] = features @ inputs["projector"] if "projector" in inputs else features
    return found


def units(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """(H, P, P) maps in window order. The release sums over queries, so that scores average 1; ``keep`` in exact and in
    released form."""
    patches, unit = inputs["object_attention"].shape[-1], params.get("merge_unit", 1)
    raster = inputs.get("reverse_indices", torch.arange(patches // unit))

    def score(attention: Tensor) -> Tensor:
        received = attention_received(*query_and_key(attention[None]), 1.0)[0] * patches
        return received.unflatten(0, (-1, unit)).mean(dim=1)[raster]

    objects, deep = score(inputs["object_attention"]), score(inputs["deep_attention"])
    exact, released = (select(objects[None], deep[None], params, parity=parity) for parity in ("paper", "release"))
    return {
        "object_scores": objects,
        "deep_scores": deep,
        "keep_indices": exact.source[0],
        "reference_keep_indices": kept_mask(released)[0].nonzero().flatten(),
    }
