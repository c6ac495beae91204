"""Statistics of one attention of the decoder, from its queries and keys: who is attended to by the question, the text, all."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.marked_attention import Heard, by_marked
from tokenreduce.kernels.attention_logits import attention_logits
from tokenreduce.kernels.attention_received import Over, attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.attention_walk import attention_walk
from tokenreduce.signals import (
    AttentionRank,
    AttentionReceived,
    AttentionWalk,
    CorrectedAttention,
    LastQueryAttention,
    TextAttention,
)

Statistic = AttentionReceived | AttentionWalk | LastQueryAttention | TextAttention


def statistic(signal: Statistic, heard: Heard) -> Tensor:
    """(B, W) the value of ``signal`` for every slot of this chunk; where text is marked, (M, W) or (M,) of M pictures."""
    if isinstance(signal, LastQueryAttention):
        documents = heard.reduced.masks.documents_at(heard.layer)
        if documents is not None:
            heard.refuse_chunks()
            return _last_rows(heard, documents, softmax=signal.softmax)
        return attended(heard, softmax=signal.softmax)[:, heard.past :]
    rows, place, asked = heard.query, heard.place(), heard.reduced.asking(heard.layer)
    more: dict[str, Any] = {"visible": heard.visible, "softcap": heard.softcap, "causal": True, "window": heard.window}
    if isinstance(signal, AttentionWalk):
        more |= {"steps": signal.steps, "temperature": signal.temperature, "place": place, "query_mask": asked}
        return attention_walk(rows, heard.key, heard.scale, **more)[:, heard.past :]
    over: Over = "mean"
    if isinstance(signal, TextAttention) and signal.queries == "marked":
        return by_marked(heard, signal, place)
    if isinstance(signal, TextAttention):
        rows, slots, asked = _text_rows(heard)
        place = slots + heard.past if place is None else place.gather(1, slots)
        over = signal.over
    more |= {"place": place, "query_mask": asked, "over": over}
    return attention_received(rows, heard.key, heard.scale, **more)[:, heard.past :]


def multiply_adds(signal: Statistic, heard: Heard) -> int:
    """What ``statistic`` multiplies: the queries it asks for with the keys there are, padding left out."""
    start = heard.reduced.packings.start(heard.layer)
    asked = {
        AttentionRank: lambda n, visual: n - visual,
        AttentionReceived: lambda n, visual: n,
        AttentionWalk: lambda n, visual: n * getattr(signal, "steps", 0),
        CorrectedAttention: lambda n, visual: n - visual,
        LastQueryAttention: lambda n, visual: 1,
        TextAttention: lambda n, visual: n - visual,
    }[type(signal)]
    counts = zip(heard.packing.counts, heard.reduced.packings.visual_counts[start], strict=True)
    pairs = sum(asked(n, visual) * (heard.past + n) for n, visual in counts)
    return pairs * heard.query.shape[1] * heard.query.shape[3]


def _text_rows(heard: Heard) -> tuple[Tensor, Tensor, Tensor]:
    """The queries (B, H, R, d) of real text, the slots (B, R) they come from, and which of them are real (B, R).

    R, the longest text of the batch, is known on the host; shorter rows are filled up with queries that do not count.
    """
    packings, packing, query = heard.reduced.packings, heard.packing, heard.query
    visual = packings.visual_counts[packings.start(heard.layer)]
    longest = max(real - seen for real, seen in zip(packing.counts, visual, strict=True))
    text = ~heard.reduced.visual.to(query.device, non_blocking=True).gather(1, packing.order)
    asking = heard.reduced.asking(heard.layer)
    if asking is not None:
        text = text & asking
    slots = text.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    index = slots[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    return query.gather(2, index), slots, text.gather(1, slots)


def _rows(heard: Heard, last: Tensor | None, seen: Tensor | None, *, softmax: bool) -> Tensor:
    """(B, past + W) what the query in slot ``last`` (B,), None: in the last slot, attends to or, unnormalised, compares with."""
    query = heard.query[:, :, -1:] if last is None else heard.query.gather(2, _at(last, heard.query))
    of = partial(attention_row, visible=seen) if softmax else attention_logits
    return of(query, heard.key, heard.scale, softcap=heard.softcap)[:, 0]


def attended(heard: Heard, *, softmax: bool) -> Tensor:
    """(B, past + W) attention of the question's last token."""
    last = heard.reduced.question_slot(heard.layer)
    seen = _window(heard, last)
    own = heard.reduced.masks.given_at(heard.layer)
    if own is not None:
        slot = torch.full((len(own),), -1 % own.shape[1], device=own.device) if last is None else last
        row = own[torch.arange(len(own), device=own.device), slot]
        seen = row if seen is None else seen & row
    return _rows(heard, last, seen, softmax=softmax)


def _last_rows(heard: Heard, documents: Tensor, *, softmax: bool) -> Tensor:
    """(B, W) attention that each column is paid by the last token of its own document; ``documents`` (B, W)."""
    value = torch.zeros(documents.shape, device=heard.query.device)
    column = torch.arange(documents.shape[1], device=value.device)
    for document in range(int(documents.max()) + 1):
        own = documents == document
        if heard.packing.valid is not None:
            own = own & heard.packing.valid
        last = torch.where(own, column, -1).amax(dim=1).clamp_min(0)
        seen = own if heard.window is None else own & (column > (last - heard.window)[:, None])
        value = torch.where(own, _rows(heard, last, seen, softmax=softmax), value)
    return value


def _at(index: Tensor, x: Tensor) -> Tensor:
    return index[:, None, None, None].expand(-1, x.shape[1], 1, x.shape[3])


def _window(heard: Heard, last: Tensor | None) -> Tensor | None:
    """(B, past + W) bool of the keys the last real query sees; None when it sees all."""
    visible, length = heard.visible, heard.key.shape[2]
    column = torch.arange(length, device=heard.query.device)
    if last is not None:
        upto = column <= (heard.past + last)[:, None]
        visible = upto if visible is None else visible & upto
    end = torch.full((len(heard.query),), length - 1, device=column.device) if last is None else heard.past + last
    if heard.window is not None and heard.window < length:
        near = column > (end - heard.window)[:, None]
        visible = near if visible is None else visible & near
    if heard.chunk is not None:
        padding = 0 if heard.visible is None else (heard.visible.cumsum(dim=1) == 0).sum(dim=1)
        near = column >= ((end - padding) // heard.chunk * heard.chunk + padding)[:, None]
        visible = near if visible is None else visible & near
    return visible
