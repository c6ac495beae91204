"""Video-XL-2: which keys a query sees during the prefill, and a cache whose irrelevant blocks are pooled."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.adapters.hooks.attention_masks import sees_chunk
from tokenreduce.bilevel_cache import pooled, whole_blocks


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    return params.one_of("function", {"mask": mask, "bilevel": bilevel}, "bilevel")(inputs, params)


def group_of(params: Meta[Any]) -> Tensor:
    """(ve,) long, the group of each column up to the end of the video; -1: text or time stamp."""
    stamp, tokens = params["time_tokens"], params["tokens_per_group"]
    video = [-1] * stamp + [0] * tokens
    column = [-1] * params["visual_start"] + [g if at == 0 else -1 for g in range(params["groups"]) for at in video]
    return torch.tensor(column)


def mask(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    params.agree(groups=-(-params["frames"] // 4))
    group = torch.cat([group_of(params), torch.full((params["suffix"],), -1)])
    chunk = torch.where(group < 0, -1, group // params["block_size"])
    seen = sees_chunk(chunk[:, None], chunk[None], params["prev_blocks"]).tril()
    length = len(chunk)
    return {"mask": seen.long(), "share": seen.sum() / (length * (length + 1) / 2)}


def bilevel(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    keys, group = inputs["keys"], group_of(params)
    params.agree(heads=keys.shape[1], dim=keys.shape[3])
    units = torch.tensor(params["selected_units"], dtype=torch.long)[None]
    (blocks,) = (whole.nonzero().flatten() for whole in whole_blocks(params["groups"], params["chunk_size"], units))
    visual = (group >= 0).nonzero().flatten()
    frame = group[visual][None]
    plan = pooled(frame, torch.isin(frame // params["chunk_size"], blocks), params["step"])
    kept = torch.ones_like(group, dtype=torch.bool).index_fill(0, visual, False)
    kept[visual[plan.source[0]]] = True
    found = {}
    for name in ("keys", "values"):
        x = inputs[name].transpose(1, 2).flatten(2)
        rows = x.clone()
        rows[:, visual[plan.source[0]]] = plan.carry(x[:, visual])
        found[name] = rows[:, kept].unflatten(2, (keys.shape[1], -1)).transpose(1, 2)
    mixed = int(kept.sum())
    return {
        **found,
        "full_blocks": torch.tensor([0, *(blocks + 1).tolist()]),
        "suffix_positions": torch.arange(mixed, mixed + params["suffix"]),
    }
