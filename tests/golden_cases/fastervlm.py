"""FasterVLM: [CLS] rows (per image, per tile, per frame) or the raw outputs of a tower."""

from __future__ import annotations

import math
from typing import Any

import models
import torch
from golden_cases.common import kept_mask, make, query_and_key, show, with_cls_key
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from tokenreduce.adapters.registry import family_of
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.layout import Layout
from tokenreduce.methods.fastervlm import FasterVLM
from tokenreduce.reduction import Reduction


def run(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if "attentions" in inputs:
        return tower(inputs, params)
    attention, features = inputs["cls_attn"], inputs["features"]
    if "grid_w" in params:
        return tiles(attention, features, params)
    if attention.ndim == 4:  # frames are images of their own
        frames = attention.shape[:2]
        found = images(attention.flatten(0, 1), features.flatten(0, 1), params)
        return {name: value.unflatten(0, frames) for name, value in found.items()}
    return images(attention, features, params)


def select(attention: Tensor, params: dict[str, Any]) -> tuple[Tensor, Reduction]:
    """Scores (B, N) and the plan, from [CLS] rows (B, H, N) without their [CLS] key."""
    method = make(FasterVLM, params)
    query, key = query_and_key(with_cls_key(attention)[:, :, None])
    score = attention_row(query, key, 1.0, heads=method.heads)[:, 0, 1:]
    return score, show(method, [score], Layout(1, score.shape[1]))[1]


def images(attention: Tensor, features: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    score, plan = select(attention, params)
    return {
        "keep_indices": plan.source,
        "keep_mask": kept_mask(plan),
        "scores": score,
        "features": plan.carry(features),
    }


def tiles(attention: Tensor, features: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    """Every tile an image of its own; output order: the base view, then the tiles stitched into one raster."""
    _, plan = select(attention, params)
    side, width = params["side"], params["grid_w"]
    tile, at = kept_mask(plan).nonzero().unbind(1)
    row = (tile - 1) // width * side + at // side
    column = (tile - 1) % width * side + at % side
    raster = torch.where(tile == 0, at - side * side, row * (width * side) + column)
    order = raster.argsort()
    source = (tile * side * side + at)[order]
    return {"source_indices": source, "features": features.flatten(0, 1)[source]}


def tower(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """Which block's attention belongs to the features, and which rows are patches, is the family's knowledge."""
    attentions, hidden = inputs["attentions"], inputs["hidden_states"]
    side = math.ceil(math.sqrt(hidden.shape[2] - 1))
    config = LlavaConfig(
        vision_config=models.vision("clip", side, depth=len(attentions)),
        text_config=models.text(),
        vision_feature_layer=params["select_layer"],
    )
    with torch.device("meta"):
        family = family_of(LlavaForConditionalGeneration(config))
    facts = family.facts()
    method = make(FasterVLM, params)
    query, key = query_and_key(attentions[facts.feature_block][:, :, :1])
    score = family.tower_tokens(attention_row(query, key, 1.0, heads=method.heads)[:, 0])
    _, plan = show(method, [score], Layout(1, score.shape[1]), facts=facts)
    features = hidden[params["select_layer"]][:, family.tower_prefix :] @ inputs["projector"]
    return {
        "keep_indices": plan.source,
        "keep_mask": kept_mask(plan),
        "scores": score,
        "features": plan.carry(features),
    }
