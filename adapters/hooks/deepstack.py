"""Deep-stacked visual features, which a decoder adds to its visual tokens in front of some layers: they share their fate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.upstream.decoder import DeepStack, deep_stack, put_deep_stack


def spread(deep: list[Tensor], visual: Tensor, embeds: Tensor) -> Tensor:
    """(B, L, E) what is added to each column in front of some layers, side by side; zero at text."""
    batch, length, width = embeds.shape
    whole = embeds.new_zeros(batch, length, width * len(deep))
    if deep:
        whole[visual.to(embeds.device)] = torch.cat([x.to(embeds) for x in deep], dim=-1)
    return whole


def take_over(reduced: DecoderPass, kwargs: dict[str, Any]) -> Tensor:
    """Note what the decoder is to add to its visual tokens, where it is to add anything; returns what methods are shown.

    That is (B, L, D) what enters the decoder. Where this holds nothing of a picture, the first that is added stands in it.
    """
    embeds: Tensor = kwargs["inputs_embeds"]
    stack = deep_stack(kwargs)
    if stack is None:
        return embeds
    first = stack.features[: int(stack.alone)]
    reduced.beside[0] = spread(stack.features[len(first) :], stack.places, embeds)
    return embeds + spread(first, stack.places, embeds) if first else embeds


def hand_over(reduced: DecoderPass, kwargs: dict[str, Any]) -> None:
    """Put what is left of ``reduced.beside[0]`` among the arguments of the decoder.

    Where tokens leave while it is still being added, it is taken out of them: the hooks of the layers add it instead.
    """
    stack = deep_stack(kwargs)
    assert stack is not None, "what travels beside came from there"
    embeds, valid = kwargs["inputs_embeds"], reduced.packings.by_first[0].valid
    places = stack.places.to(embeds.device)
    if stack.alone:
        text = places.logical_not().unsqueeze(-1)
        kwargs["inputs_embeds"] = embeds.masked_fill(~text, 0)
        reduced.beside[0] = torch.cat([embeds.masked_fill(text, 0), reduced.beside[0]], dim=-1)
    reduced.joined_at = stack.layers
    if any(layer < stack.layers[-1] for layer in reduced.pipeline.layers("llm")):
        put_deep_stack(kwargs, None)
        return
    places = places if valid is None else places & valid
    whole = reduced.beside.pop(0)
    at = places.nonzero(as_tuple=True)
    left = [x[at] for x in whole.split(embeds.shape[-1], dim=-1)]
    put_deep_stack(kwargs, DeepStack(stack.layers, left, places, stack.alone))


def joined(reduced: DecoderPass, layer: int, hidden: Tensor) -> Tensor:
    """``hidden`` (B, W, D) with what the decoder itself would have added in front of ``layer``, had no tokens left."""
    if not reduced.beside or layer not in reduced.joined_at:
        return hidden
    parts = reduced.beside[reduced.packings.start_behind(max(layer - 1, 0))].split(hidden.shape[-1], dim=-1)
    return hidden + parts[reduced.joined_at.index(layer)].to(hidden)
