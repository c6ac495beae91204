"""The reference for the stage ``decode``: the model itself, with entries really taken out of its cache while a layer runs.

Shares no code with the hooks. One sample without padding; attention has to be eager, since its weights are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from tokenreduce.eval.doctor.shortened import decoder_of

#: called at every step with the attention (N,) of the new token to each picture: which entries (N,) bool it reads
Rule = Callable[[list[Tensor]], list[Tensor]]


@contextmanager
def reading(
    model: Any, layer: int, pictures: list[Tensor], rule: Rule, later: tuple[int, list[Tensor]] | None = None
) -> Iterator[list[list[Tensor]]]:
    """Inside, single new tokens read, from ``layer`` on, what ``rule`` says of the entries at columns ``pictures``.

    ``later``: a layer from which on they are at other columns, -1 where they have gone. Gives what was read, step by step.
    """
    steps: list[list[Tensor]] = []
    layers = decoder_of(model).layers
    whole: dict[int, tuple[Tensor, Tensor]] = {}
    unread: list[Tensor] = []

    def look(attention: Any, args: Any, out: Any) -> None:
        weights = out[1]
        if weights.shape[2] > 1:
            return
        assert len(weights) == 1
        row = weights[0, :, 0].float().mean(dim=0)
        steps.append(rule([row[columns] for columns in pictures]))
        unread[:] = [~read for read in steps[-1]]

    def before(i: int) -> Any:
        def cut(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if hidden.shape[-2] > 1:
                return None
            cache = next(x for x in kwargs.values() if isinstance(x, Cache))
            held = cache.layers[i]
            whole[i] = (held.keys, held.values)
            left = torch.ones(held.keys.shape[2], dtype=torch.bool)
            for columns, gone in zip(later[1] if later is not None and i >= later[0] else pictures, unread):
                left[columns[gone & (columns >= 0)]] = False
            held.keys, held.values = held.keys[:, :, left], held.values[:, :, left]
            return args, {**kwargs, "attention_mask": None}

        return cut

    def behind(i: int) -> Any:
        def put_back(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
            if i in whole:
                cache = next(x for x in kwargs.values() if isinstance(x, Cache))
                held, (keys, values) = cache.layers[i], whole.pop(i)
                held.keys = torch.cat([keys, held.keys[:, :, -1:]], dim=2)
                held.values = torch.cat([values, held.values[:, :, -1:]], dim=2)

        return put_back

    handles = [layers[layer - 1].self_attn.register_forward_hook(look)]
    for i in range(layer, len(layers)):
        handles.append(layers[i].register_forward_pre_hook(before(i), with_kwargs=True))
        handles.append(layers[i].register_forward_hook(behind(i), with_kwargs=True))
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def fed(model: Any, inputs: dict, tokens: Tensor) -> Tensor:
    """(T, V) logits in front of each of the ``tokens`` (T,), which the model is made to write one by one."""
    start = inputs["input_ids"].shape[1]

    def only(batch: int, ids: Tensor) -> list[int]:
        return [int(tokens[len(ids) - start])]

    out = model.generate(
        **inputs,
        max_new_tokens=len(tokens),
        min_new_tokens=len(tokens),
        do_sample=False,
        prefix_allowed_tokens_fn=only,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack([step[0] for step in out.logits])
