"""FasterVLM: [CLS] rows (per image, per tile, per frame) or the raw outputs of a tower."""

from __future__ import annotations

import math
from typing import Any

import models
import torch
from golden_cases.common import kept_mask, make, query_and_key, show, with_cls_key
from golden_cases.vectors import Meta
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from tokenreduce.adapters.registry import family_of
from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.layout import Layout
from tokenreduce.methods.fastervlm import FasterVLM
from tokenreduce.reduction import Reduction


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if "attentions" in inputs:
        return tower(inputs, params)
    params.noted("select_layer")  # the block that the rows are of
    attention, features = inputs["cls_attn"], inputs["features"]
    params.agree(video=attention.ndim == 4)
    if "grid_w" in params:
        return tiles(attention, features, params)
    if attention.ndim == 4:  # frames are images of their own
        frames = attention.shape[:2]
        found = images(attention.flatten(0, 1), features.flatten(0, 1), params)
        return {name: value.unflatten(0, frames) for name, value in found.items()}
    return images(attention, features, params)


def method_of(params: Meta[Any], images: int) -> FasterVLM:
    given = {"heads": params["head_reduce"]} if "head_reduce" in params else {}
    method = make(FasterVLM, params, images, **given)
    assert isinstance(method, FasterVLM)
    return method


def select(attention: Tensor, params: Meta[Any]) -> tuple[Tensor, Reduction]:
    """Scores (B, N) and the plan, from [CLS] rows (B, H, N) without their [CLS] key."""
    method = method_of(params, len(attention))
    if method.score == "global_mean":
        raise ValueError(f"parameter score={method.score!r} of [CLS] rows; this driver honours it for whole maps")
    query, key = query_and_key(with_cls_key(attention)[:, :, None])
    score = attention_row(query, key, 1.0, heads=method.heads)[:, 0, 1:]
    return score, show(method, [score], Layout(1, score.shape[1]))[1]


def images(attention: Tensor, features: Tensor, params: Meta[Any]) -> dict[str, Tensor]:
    score, plan = select(attention, params)
    return outputs(score, plan) | {"features": plan.carry(features)}


def outputs(score: Tensor, plan: Reduction) -> dict[str, Tensor]:
    return {"keep_indices": plan.source, "keep_mask": kept_mask(plan), "scores": score}


def tiles(attention: Tensor, features: Tensor, params: Meta[Any]) -> dict[str, Tensor]:
    """Every tile an image of its own; output order: the base view, then the tiles stitched into one raster."""
    _, plan = select(attention, params)
    side, width = math.isqrt(attention.shape[-1]), params["grid_w"]
    params.agree(side=side, grid_h=(len(attention) - 1) // width)
    tile, at = kept_mask(plan).nonzero().unbind(1)
    row = (tile - 1) // width * side + at // side
    column = (tile - 1) % width * side + at % side
    raster = torch.where(tile == 0, at - side * side, row * (width * side) + column)
    order = raster.argsort()
    source = (tile * side * side + at)[order]
    return {"source_indices": source, "features": features.flatten(0, 1)[source]}


def tower(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """Which block's attention belongs to the features, and which rows are patches, is the family's knowledge."""
    attentions, hidden, layer = inputs["attentions"], inputs["hidden_states"], params.get("select_layer", -2)
    has_cls = params.one_of("class_token", (True, False), True)
    side = math.ceil(math.sqrt(hidden.shape[2] - has_cls))
    config = LlavaConfig(
        vision_config=models.vision("clip" if has_cls else "siglip", side, depth=len(attentions)),
        text_config=models.text(),
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if has_cls else "full",
    )
    with torch.device("meta"):
        family = family_of(LlavaForConditionalGeneration(config))
    facts = family.facts()
    method = method_of(params, hidden.shape[1])
    query, key = query_and_key(attentions[facts.feature_block])
    if method.score != "global_mean" and facts.has_cls:
        score = attention_row(query[:, :, :1], key, 1.0, heads=method.heads)[:, 0]
    else:
        score = attention_received(query, key, 1.0)
    score = family.tower_tokens(score)
    _, plan = show(method, [score], Layout(1, score.shape[1]), facts=facts)
    features = hidden[layer][:, family.tower_prefix :]
    if "projector" in inputs:
        features = features @ inputs["projector"]
    return outputs(score, plan) | {"features": plan.carry(features)}
