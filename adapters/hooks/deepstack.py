"""Deep-stacked visual features, which a decoder adds to its visual tokens after its first layers: they share their fate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.upstream.decoder import DEEP_FEATURES, DEEP_PLACES


def spread(deep: list[Tensor], visual: Tensor, embeds: Tensor) -> Tensor:
    """(B, L, E) what is added to each column after the first layers, side by side; zero at text."""
    batch, length, width = embeds.shape
    whole = embeds.new_zeros(batch, length, width * len(deep))
    whole[visual.to(embeds.device)] = torch.cat([x.to(embeds) for x in deep], dim=-1)
    return whole


def take_over(reduced: DecoderPass, kwargs: dict[str, Any]) -> None:
    """Note what the decoder is to add to its visual tokens, where it is to add anything."""
    deep = kwargs.get(DEEP_FEATURES)
    if deep is not None:
        reduced.beside[0] = spread(deep, kwargs[DEEP_PLACES], kwargs["inputs_embeds"])


def hand_over(reduced: DecoderPass, kwargs: dict[str, Any]) -> None:
    """Put what is left of ``reduced.beside[0]`` among the arguments of the decoder.

    Where tokens leave while it is still being added, it is taken out of them: the hooks of the layers add it instead.
    """
    deep = kwargs.pop(DEEP_FEATURES)
    mask = kwargs.pop(DEEP_PLACES)
    if any(layer < len(deep) for layer in reduced.pipeline.layers("llm")):
        return
    valid = reduced.packings.by_first[0].valid
    mask = kwargs[DEEP_PLACES] = mask if valid is None else mask & valid
    whole = reduced.beside.pop(0)
    kwargs[DEEP_FEATURES] = [x[mask] for x in whole.split(whole.shape[-1] // len(deep), dim=-1)]
