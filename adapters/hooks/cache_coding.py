"""After a prompt with pictures, and while an answer is written: what of the cache is held in few bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.coded_cache import Choice, CodedLayer, choose
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import DecodeState
from tokenreduce.adapters.upstream.cache import Cache, DynamicLayer

#: what a method of a codec notes: (B, N0) bool, of the pictures that are coded, the tokens whose values are to lose less
PROTECTED = "protected"


def code_cache(reduced: DecoderPass, prompt: int | None) -> None:
    """Hold what this prompt left in the cache in few bits, from the layer of the step on, after every reduction.

    ``prompt``: columns of the prompt that ``generate`` was given; None: it is not under way.

    Errors: ``ValueError`` where the prompt goes on behind this pass, which is to be read with exact keys.
    """
    found = reduced.pipeline.codes
    if found is None or reduced.cache is None:
        return
    number, step = found
    groups = [group for group in reduced.groups if PROTECTED in group.notes.get(number, {})]
    if not groups:
        return
    end = reduced.offset + reduced.visual.shape[1]
    if prompt is not None and end < prompt:
        raise ValueError(
            f"method={reduced.pipeline.methods[number].name!r} holds the cache in few bits behind the prompt, but this call "
            f"brings a picture and columns up to {end} of a prompt of {prompt}; leave out prefill_chunk_size"
        )
    assert step.codec is not None
    batch, cache, masks = len(reduced.length_in), reduced.cache, reduced.masks
    rows = torch.zeros(batch, dtype=torch.bool, device=reduced.real.device)
    for group in groups:
        rows[group.samples] = True
    alike = len({row for group in groups for row in group.decoder_rows}) == batch
    once: dict[Any, Any] = {}
    for i in range(step.layer or 0, reduced.depth):
        if masks.holders[i] != i:
            continue
        layer = coded_layer(cache, i, step.codec)
        if alike:
            layer.coded = None
        elif layer.key_parts:
            layer.coded = None if layer.coded is None else layer.coded | rows
        else:
            layer.coded = rows
        protected = _protected(reduced, groups, number, i, once)
        _code(layer, masks.real[i], protected, step.codec.group, once)


def code_written(cache: Cache | None, state: DecodeState | None) -> None:
    """In front of a pass that goes on behind a prompt: code what was written since, where it is enough."""
    once: dict[Any, Any] = {}
    for i, layer in enumerate([] if cache is None or state is None else cache.layers):
        if isinstance(layer, CodedLayer) and layer.due is not None and layer.get_seq_length() >= layer.due:
            assert state is not None and layer.codec.residual is not None  # noqa: PT018
            _code(layer, state.real[i], None, layer.codec.residual, once)


def coded_layer(cache: Cache, index: int, codec: Any) -> CodedLayer:
    """Layer ``index`` of ``cache``, which can be coded from now on.

    Errors: ``ValueError`` for a layer that does not hold keys as they come.
    """
    held: Any = cache.layers[index]
    if type(held) not in (DynamicLayer, CodedLayer):
        raise ValueError(
            f"a {type(held).__name__} cannot be held in few bits; allowed: the layers of a DynamicCache. Leave out "
            "cache_implementation and the cache you pass, or leave out the method that codes the cache"
        )
    if type(held) is DynamicLayer:
        held = cache.layers[index] = CodedLayer(held, codec)
    held.codec = codec
    return held


def _code(layer: CodedLayer, real: Tensor | None, protected: Tensor | None, least: int, once: dict[Any, Any]) -> None:
    """Code what is there to be coded in ``layer``; layers of equal history share what was chosen."""
    history = (layer.start, layer.until, layer.get_seq_length(), tuple(id(part.columns) for part in layer.key_parts))
    key = (history, id(real), id(protected), layer.coded is None)
    if key not in once:
        once[key] = (choose(layer, real, layer.coded, protected, least), layer.due)
    choice, due = once[key]
    if isinstance(choice, Choice):
        layer.code(choice)
    else:
        layer.due = due


def _protected(reduced: DecoderPass, groups: list[Any], number: int, layer: int, once: dict[Any, Any]) -> Tensor | None:
    """(B, P) bool, the cached columns of ``layer`` that hold protected tokens."""
    packing, past = reduced.cached.get(layer, reduced.packings.at(layer)), reduced.masks.past[layer]
    key = (PROTECTED, id(packing), past)
    if key not in once:
        found = torch.zeros(len(reduced.length_in), past + packing.width, dtype=torch.bool, device=packing.order.device)
        for group in groups:
            marked = group.notes[number][PROTECTED] & (group.assign >= 0)
            seats = group.seats.gather(1, group.assign.clamp_min(0))
            slots, rows = packing.slot[group.samples[:, None], seats] + past, group.samples[:, None]
            found.index_put_((rows.expand_as(slots), slots), marked, accumulate=True)
        once[key] = found
    return once[key]
