"""The bare model on a sequence that is really shorter: what a wrapped model has to equal. Shares nothing with the hooks.

What the multimodal model hands to its decoder is caught once. It is handed over again with everything cut down to the
columns of one sample that stay, whatever the arguments are called: an axis is known by its length and by the kind of tensor
it belongs to. No family is known here. A window of a decoder must be longer than the prompt, since a mask that was cut down
counts it along all columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Columns:
    """The columns of one sample: ``entered`` (K,) the decoder, ``at[k]`` are there from layer k on; ``written``, those from
    this number on, no longer see ``forgotten`` (F,) from layer ``forgotten_from`` on.
    """

    entered: Tensor
    at: dict[int, Tensor] = field(default_factory=dict)
    forgotten: Tensor | None = None
    forgotten_from: int = 0
    written: int = 0


def decoder_of(model: Any) -> Any:
    """The decoder of ``model``, also where ``get_decoder()`` is a causal language model around it."""
    found = model.get_decoder()
    return found if found.get_output_embeddings() is None else found.model


@torch.no_grad()
def caught(model: Any, inputs: dict[str, Any], generate: bool) -> dict[str, Any]:
    """What the decoder of the bare ``model`` is handed for a prompt, by ``generate`` or by a forward pass."""
    given: dict[str, Any] = {}

    def catch(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given.update({} if given else kwargs)

    with hooked(decoder_of(model).register_forward_pre_hook(catch, with_kwargs=True)):
        if generate:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        else:
            model(**inputs, use_cache=False)
    return {name: x for name, x in given.items() if isinstance(x, (Tensor, list, tuple, dict))}


@torch.no_grad()
def logits(
    model: Any, inputs: dict[str, Any], given: dict[str, Any], sample: int, columns: Columns, *, renumber: bool = False
) -> Tensor:
    """(T, V) of the columns of one sample that reach the last layer; ``renumber``: counted anew 0, 1, ... on all axes.

    ``model`` must run on eager attention, so that its layers are handed masks that can be cut down.
    """
    decoder = decoder_of(model)
    shorter = one_sample(given, sample, columns.entered)
    if renumber:
        ids = shorter["position_ids"]
        shorter["position_ids"] = torch.arange(ids.shape[-1]).expand_as(ids)
    layers = next(
        blocks
        for blocks in decoder.modules()
        if isinstance(blocks, nn.ModuleList) and len(blocks) == decoder.config.num_hidden_layers
    )

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return (), {**dict.fromkeys(kwargs), **shorter, "use_cache": False}

    def layer(number: int) -> Callable[..., Any]:
        before, now = living(columns, number - 1), living(columns, number)

        def run(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            hidden, *others = args
            hidden = at(hidden, len(before), torch.isin(before, now))
            stays = torch.isin(columns.entered, now)
            kwargs = {name: at(x, len(stays), stays) for name, x in kwargs.items()}
            if columns.forgotten is not None and number >= columns.forgotten_from:
                kwargs = {name: blind(x, now, columns) for name, x in kwargs.items()}
            return (hidden, *(at(x, len(stays), stays) for x in others)), kwargs

        return run

    handles = [decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [x.register_forward_pre_hook(layer(i), with_kwargs=True) for i, x in enumerate(layers)]
    with hooked(*handles):
        return model(**inputs, use_cache=False).logits[0]


def living(columns: Columns, layer: int) -> Tensor:
    """The columns that decoder ``layer`` works on."""
    last = max((k for k in columns.at if k <= layer), default=None)
    return columns.entered if last is None else columns.at[last]


def one_sample(given: dict[str, Any], sample: int, keep: Tensor) -> dict[str, Any]:
    """The arguments of the decoder for columns ``keep`` (K,) of one ``sample`` of the batch."""
    batch, length = given["inputs_embeds"].shape[:2]
    marks = [
        x.view(batch, length)
        for x in given.values()
        if isinstance(x, Tensor) and x.dtype == torch.bool and x.shape in ((batch, length), (batch, length, 1))
    ]
    there = torch.zeros(batch, length, dtype=torch.bool)
    there[sample, keep] = True

    def cut(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: cut(value) for name, value in x.items()}
        if isinstance(x, (list, tuple)):
            return type(x)(cut(value) for value in x)
        if not isinstance(x, Tensor):
            return x
        for marked in marks:  # a row for every marked column, such as features added to visual tokens
            if x.ndim == 2 and x.is_floating_point() and len(x) == int(marked.sum()):
                return x[there[marked]]
        if x.ndim == 1 and len(x) == length:  # how far the cache is filled
            return torch.arange(len(keep))
        x = at(x, length, there[sample])
        return x[sample : sample + 1] if x.ndim > 1 and len(x) == batch else x

    shorter = {name: cut(x) for name, x in given.items() if name != "position_ids"}
    ids = given.get("position_ids")  # of one or several axes, whole numbers or not, of every sample or of all
    own = keep[None] if ids is None else ids[..., min(sample, ids.shape[-2] - 1), :][..., None, keep]
    return {**shorter, "position_ids": own}


def at(x: Any, length: int, stays: Tensor) -> Any:
    """``x`` where ``stays`` (L,) bool along the axes that have a column for each of ``length``; nested ones, too."""
    if isinstance(x, dict):
        return {name: at(value, length, stays) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(at(value, length, stays) for value in x)
    if not isinstance(x, Tensor) or x.ndim < 2:
        return x
    if x.ndim == 4 and x.shape[-2:] == (length, length):  # a mask of queries and keys
        return x[..., stays, :][..., stays]
    axis = -1  # ids, masks and kinds
    # embeddings, rotary tables and what marks embeddings; several of a token, in front of or behind it
    if x.ndim > 2 and (x.is_floating_point() or x.is_complex() or x.shape[-1] == 1):
        axis = 1 if x.shape[1] == length else -2
    return x.index_select(axis, stays.nonzero()[:, 0]) if x.shape[axis] == length else x


def blind(x: Any, columns: Tensor, rule: Columns) -> Any:
    """A mask (1, 1, T, T) in which what was written after the prompt does not see the forgotten columns."""
    if not (isinstance(x, Tensor) and x.ndim == 4 and x.shape[-2:] == (len(columns),) * 2):
        return x
    assert rule.forgotten is not None
    hidden = (columns >= rule.written)[:, None] & torch.isin(columns, rule.forgotten)[None]
    return x.masked_fill(hidden, False if x.dtype == torch.bool else torch.finfo(x.dtype).min)


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
