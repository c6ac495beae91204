"""Deep-stacked visual features, which a decoder adds to its visual tokens after its first layers: they share their fate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenreduce.adapters.plan import Plan


def spread(deep: list[Tensor], visual: Tensor, embeds: Tensor) -> Tensor:
    """(B, L, E) what is added to each column after the first layers, side by side; zero at text."""
    batch, length, width = embeds.shape
    whole = embeds.new_zeros(batch, length, width * len(deep))
    whole[visual.to(embeds.device)] = torch.cat([x.to(embeds) for x in deep], dim=-1)
    return whole


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
