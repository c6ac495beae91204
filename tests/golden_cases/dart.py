"""DART: keys and states of a prompt to the columns that are kept, or a whole tiny Llama run through a wrapped LLaVA."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import torch
from golden_cases import llama as decoder
from golden_cases.common import FACTS
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.top_k import top_k
from tokenreduce.layout import Layout
from tokenreduce.methods import dart
from tokenreduce.methods.dart import DART, key_size, set_order
from tokenreduce.tokens import Rows, VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    served = {"select": select, "tiny_llama": llama}
    return params.one_of("function", served, "select" if "keys" in inputs else "tiny_llama")(inputs, params)


def make(params: Meta[Any], **given: Any) -> DART:
    """The method with the release's count: a number of tokens, or else the share that goes."""
    limit, gone = params.get("max_tokens"), params.get("reduction_ratio")
    n, pivots = params["image_len"], params["pivot_image"] + params["pivot_text"]
    keep = limit if limit is not None else 1 - gone
    params.agree(per_pivot=(limit if limit is not None else int(n * keep)) // pivots)
    own = {"layer": params["K"]} if "K" in params else {}
    own |= {"norm": params.one_of("norm", ("l1", "l2"), "l1")}
    return DART(
        keep=keep,
        image_pivots=params["pivot_image"],
        text_pivots=params["pivot_text"],
        reference_count=True,
        **own,
        **given,
    )


def select(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """(1, H, T, d) rotated keys of the layer before and (1, T, C) states after the final norm."""
    keys, hidden = inputs["keys"].transpose(1, 2).flatten(2), inputs["hidden_norm"]
    start, n = params["image_start"], params["image_len"]
    params.agree(text_len=hidden.shape[1] - start - n)
    image, text = slice(start, start + n), slice(start + n, None)
    column = torch.arange(hidden.shape[1])[None]
    real = torch.ones_like(column[:, text], dtype=torch.bool)

    def kept(method: DART) -> Tensor:
        (step,) = method.plan(dataclasses.replace(FACTS, decoder_depth=method.layer + 1))
        rows = [Rows(x[:, text], real, column[:, text]) for x in (keys, hidden)]
        shown = (keys[:, image], hidden[:, image], column[:, image], *rows)
        tokens = VisualTokens(
            hidden[:, image], Layout(1, n), step.stage, step.layer, signals=dict(zip(step.needs, shown, strict=True))
        )
        plan = method.reduce(tokens).check(tokens)
        return plan.source[0] + start

    method = make(params)
    size = key_size(keys, method.norm)
    own = top_k(size[:, image], method.image_pivots) + start
    others = top_k(size[:, text], method.text_pivots) + text.start
    pivots = torch.cat([own, others], dim=1)
    (order,) = set_order(pivots.tolist(), [[True] * pivots.shape[1]])
    return {
        "kept": kept(method),
        "image_pivots": own[0],
        "text_pivots": others[0],
        "pivot_order": pivots[0, order],
        "kept_descending_order": kept(make(params, pivot_order="norm")),
    }


def llama(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """The whole language model, through prefill and one decode step."""
    length, start, n = inputs["embeds"].shape[1], params["image_start"], params["image_len"]
    params.agree(text_len=length - start - n)
    visited: list[int] = []

    def noted(places: list[list[int]], exists: list[list[bool]]) -> list[list[int]]:
        orders = set_order(places, exists)
        visited.extend(places[0][i] for i in orders[0])
        return orders

    with mock.patch.object(dart, "set_order", noted):
        found = decoder.run(inputs, params, make(params), [slice(start, start + n)])
    (row,) = found.columns(params["K"])
    return {
        "keep_sequence": row,
        "pivot_order": torch.tensor(visited),
        "kept": row[(row >= start) & (row < start + n)],
        "hidden": found.last(len(found.held) - 1),
        "cache_len": found.held,
        "decode_hidden": found.decoded,
        "decode_position": found.ids,
    }
