"""Deep-stacked visual features, which a decoder adds to its visual tokens after its first layers: they share their fate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenreduce.adapters.packing import Packing, scatter
from tokenreduce.groups import ImageGroup

if TYPE_CHECKING:
    from tokenreduce.adapters.plan import Plan


def spread(deep: list[Tensor], visual: Tensor, embeds: Tensor) -> Tensor:
    """(B, L, E) what is added to each column after the first layers, side by side; zero at text."""
    batch, length, width = embeds.shape
    whole = embeds.new_zeros(batch, length, width * len(deep))
    whole[visual.to(embeds.device)] = torch.cat([x.to(embeds) for x in deep], dim=-1)
    return whole


def write(beside: Tensor, packing: Packing, groups: list[ImageGroup]) -> Tensor:
    """``beside`` (B, W, E) with the companions of new or moved tokens written to their slots."""
    for group in groups:
        if group.moved and group.companions is not None:
            slots = packing.slot[group.samples[:, None], group.seats]
            beside = scatter(beside, slots, group.samples, group.companions)
    return beside


def hand_over(plan: Plan, kwargs: dict[str, Any]) -> None:
    """Put what is left of ``plan.beside[0]`` among the arguments of the decoder.

    Where tokens leave while it is still being added, it is taken out of them: the hooks of the layers add it instead.
    """
    deep = kwargs.pop("deepstack_visual_embeds")
    mask = kwargs.pop("visual_pos_masks")
    if any(layer < len(deep) for layer in plan.pipeline.layers("llm")):
        return
    valid = plan.packings[0].valid
    mask = kwargs["visual_pos_masks"] = mask if valid is None else mask & valid
    whole = plan.beside.pop(0)
    kwargs["deepstack_visual_embeds"] = [x[mask] for x in whole.split(whole.shape[-1] // len(deep), dim=-1)]
