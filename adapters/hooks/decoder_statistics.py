"""Statistics of one attention of the decoder, from its queries and keys: who is attended to by the question, the text, all."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.upstream.decoder import layer_type, softcap_of
from tokenreduce.kernels.attention_logits import attention_logits
from tokenreduce.kernels.attention_received import Over, attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.attention_walk import attention_walk
from tokenreduce.signals import AttentionReceived, AttentionWalk, LastQueryAttention, TextAttention

Statistic = AttentionReceived | AttentionWalk | LastQueryAttention | TextAttention


class Heard:
    """What one attention was heard to compare, and who may see whom there.

    Attributes:
        query: (B, H, W, d); ``key``: (B, H_kv, past + W, d), columns that a sliding cache forgot being zero.
        visible: (B, past + W) bool of real columns; None: all. ``window``: tokens that a query sees at most; None: no limit.
    """

    def __init__(self, reduced: DecoderPass, layer: int, module: Any, query: Tensor, key: Tensor, scale: float) -> None:
        self.reduced, self.layer = reduced, layer
        self.packing, self.past = reduced.packings.at(layer), reduced.masks.past[layer]
        self.visible = reduced.masks.visible(layer)
        length = self.past + self.packing.width
        key = key[:, :, :length]  # a static cache holds room for more
        self.query = query
        self.key = F.pad(key, (0, 0, length - key.shape[2], 0))
        self.scale, self.softcap = scale, softcap_of(module)
        config = reduced.masks.config
        slides = layer_type(config, layer) == "sliding_attention" and not reduced.masks.whole_block(layer)
        self.window: int | None = config.sliding_window if slides else None

    def place(self) -> Tensor | None:
        """(B, W) column that each query sees up to; None where all is causal."""
        upto = self.reduced.masks.sees_up_to(self.layer)
        if upto is None:
            return None
        if self.window is not None and self.window < self.key.shape[2]:
            raise ValueError(
                f"attention received in decoder layer {self.layer} is asked for, a layer in which image tokens attend both ways "
                f"within a sliding window of {self.window} tokens; choose a layer of full attention (config.layer_types)"
            )
        return upto + self.past


def statistic(signal: Statistic, heard: Heard) -> Tensor:
    """(B, W) the value of ``signal`` for every slot of this chunk."""
    if isinstance(signal, LastQueryAttention):
        documents = heard.reduced.masks.documents_at(heard.layer)
        if documents is not None:
            return _last_rows(heard, documents, softmax=signal.softmax)
        return _last_row(heard, softmax=signal.softmax)[:, heard.past :]
    rows, place, asked = heard.query, heard.place(), heard.reduced.asking(heard.layer)
    more: dict[str, Any] = {"visible": heard.visible, "softcap": heard.softcap, "causal": True, "window": heard.window}
    if isinstance(signal, AttentionWalk):
        more |= {"steps": signal.steps, "temperature": signal.temperature, "place": place, "query_mask": asked}
        return attention_walk(rows, heard.key, heard.scale, **more)[:, heard.past :]
    over: Over = "mean"
    if isinstance(signal, TextAttention) and signal.queries == "marked":
        return _by_marked(heard, signal.over, place)[:, heard.past :]
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
        AttentionReceived: lambda n, visual: n,
        AttentionWalk: lambda n, visual: n * getattr(signal, "steps", 0),
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
    text = ~heard.reduced.visual.to(query.device).gather(1, packing.order)
    asking = heard.reduced.asking(heard.layer)
    if asking is not None:
        text = text & asking
    slots = text.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    index = slots[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    return query.gather(2, index), slots, text.gather(1, slots)


def _by_marked(heard: Heard, over: Over, upto: Tensor | None) -> Tensor:
    """(M, past + W) attention that the marked tokens of text of each of M pictures pay; 0 where none is marked."""
    reduced, query, key = heard.reduced, heard.query, heard.key
    value = query.new_zeros(sum(len(group.members) for group in reduced.groups), key.shape[2], dtype=torch.float32)
    for group in reduced.groups:
        marked = next((notes["queries"] for notes in group.notes.values() if "queries" in notes), None)
        if marked is None or not marked.shape[1]:
            continue
        assert reduced.text is not None, "a column is known from text"
        samples, there = group.samples, marked >= 0
        slots = heard.packing.slot[samples[:, None], reduced.text.at(samples, marked.clamp_min(0))]
        paid = attention_received(
            query[samples].gather(2, slots[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])),
            key[samples],
            heard.scale,
            visible=None if heard.visible is None else heard.visible[samples],
            softcap=heard.softcap,
            causal=True,
            place=slots + heard.past if upto is None else upto[samples].gather(1, slots),
            window=heard.window,
            query_mask=there,
            over=over,
        )
        value[group.members] = paid.masked_fill(~there.any(dim=1, keepdim=True), 0)
    return value


def _rows(heard: Heard, last: Tensor | None, seen: Tensor | None, *, softmax: bool) -> Tensor:
    """(B, past + W) what the query in slot ``last`` (B,), None: in the last slot, attends to or, unnormalised, compares with."""
    query = heard.query[:, :, -1:] if last is None else heard.query.gather(2, _at(last, heard.query))
    of = partial(attention_row, visible=seen) if softmax else attention_logits
    return of(query, heard.key, heard.scale, softcap=heard.softcap)[:, 0]


def _last_row(heard: Heard, *, softmax: bool) -> Tensor:
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
    if heard.window is not None and heard.window < length:
        end = torch.full((len(heard.query),), length - 1, device=column.device) if last is None else heard.past + last
        near = column > (end - heard.window)[:, None]
        visible = near if visible is None else visible & near
    return visible
