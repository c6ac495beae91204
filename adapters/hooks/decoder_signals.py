"""Attention statistics of decoder layers, heard where a method asked for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.attention_functions import Probe
from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.upstream.decoder import layer_type, softcap_of
from tokenreduce.kernels.attention_received import Over, attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import AttentionReceived, LastQueryAttention, Signal, TextAttention


class DecoderSignals:
    """Captures attention statistics of single layers while a prompt that holds images runs."""

    def __init__(self, family: Family, pipeline: Pipeline, current: Callable[[], DecoderPass | None]) -> None:
        """``current`` tells the pass that is under way."""
        self.family = family
        self.current = current
        self.wanted: dict[int, list[Signal]] = {}
        for signal in pipeline.listens:
            if isinstance(signal, (AttentionReceived, LastQueryAttention, TextAttention)) and signal.part == "llm":
                self.wanted.setdefault(signal.layer, []).append(signal)

    def attach(self, handles: list[Any]) -> None:
        for layer in self.wanted:
            handles.append(Probe(self.family.decoder_attention(layer), self.listen))

    @torch.no_grad()
    def listen(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scale: float, cuts: Tensor | None
    ) -> None:
        reduced = self.current()
        if reduced is None or reduced.passive or not reduced.groups:
            return
        layer = next(i for i in self.wanted if self.family.decoder_attention(i) is module)
        masks = reduced.masks
        packing, past, visible = reduced.packings.at(layer), masks.past[layer], masks.visible(layer)
        length = past + packing.width
        key = key[:, :, :length]  # a static cache holds room for more
        window = self._limit(reduced, layer)
        softcap = softcap_of(module)
        with reduced.pipeline.stopwatch(query.device):
            for signal in self.wanted[layer]:
                if isinstance(signal, LastQueryAttention):
                    documents = masks.documents_at(layer)
                    if documents is None:
                        value = _last_row(query, key, reduced, layer, scale, window, softcap)
                    else:
                        value = _last_rows(query, key, documents, packing.valid, scale, window, softcap)
                else:
                    rows, place, asked = query, self._upto(reduced, layer, window), reduced.asking(layer)
                    over: Over = "mean"
                    if isinstance(signal, TextAttention):
                        rows, slots, asked = _text_rows(query, reduced, layer)
                        place = slots if place is None else place.gather(1, slots)
                        over = signal.over
                    value = attention_received(
                        rows,
                        key,
                        scale,
                        visible=visible,
                        softcap=softcap,
                        causal=True,
                        place=place if place is None else place + past,
                        window=window,
                        query_mask=asked,
                        over=over,
                    )
                reduced.captured[signal] = (value[:, past:], packing)

    @staticmethod
    def _limit(reduced: DecoderPass, layer: int) -> int | None:
        """Tokens that a query of ``layer`` sees at most; None: no limit."""
        config = reduced.masks.config
        if layer_type(config, layer) != "sliding_attention" or reduced.masks.whole_block(layer):
            return None
        return config.sliding_window

    @staticmethod
    def _upto(reduced: DecoderPass, layer: int, window: int | None) -> Tensor | None:
        upto = reduced.masks.sees_up_to(layer)
        if (
            upto is not None
            and window is not None
            and window < reduced.masks.past[layer] + reduced.packings.at(layer).width
        ):
            raise ValueError(
                f"attention received in decoder layer {layer} is asked for, a layer in which image tokens attend both ways "
                f"within a sliding window of {window} tokens; choose a layer of full attention (config.layer_types)"
            )
        return upto


def _text_rows(query: Tensor, reduced: DecoderPass, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """The queries (B, H, R, d) of real text, the slots (B, R) they come from, and which of them are real (B, R).

    R, the longest text of the batch, is known on the host; shorter rows are filled up with queries that do not count.
    """
    packings = reduced.packings
    packing, visual = packings.at(layer), packings.visual_counts[packings.start(layer)]
    longest = max(real - seen for real, seen in zip(packing.counts, visual, strict=True))
    text = ~reduced.visual.to(query.device).gather(1, packing.order)
    asking = reduced.asking(layer)
    if asking is not None:
        text = text & asking
    slots = text.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    index = slots[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    return query.gather(2, index), slots, text.gather(1, slots)


def _last_row(
    query: Tensor,
    key: Tensor,
    reduced: DecoderPass,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """(B, past + W) attention of the question's last token."""
    masks, last = reduced.masks, reduced.question_slot(layer)
    rows = query[:, :, -1:] if last is None else query.gather(2, _at(last, query))
    seen = _window(masks.visible(layer), last, masks.past[layer], key.shape[2], window, query)
    own = masks.given_at(layer)
    if own is not None:
        slot = torch.full((len(own),), -1 % own.shape[1], device=own.device) if last is None else last
        row = own[torch.arange(len(own), device=own.device), slot]
        seen = row if seen is None else seen & row
    return attention_row(rows, key, scale, visible=seen, softcap=softcap)[:, 0]


def _last_rows(
    query: Tensor,
    key: Tensor,
    documents: Tensor,
    valid: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """(B, W) attention that each column is paid by the last token of its own document; ``documents`` (B, W)."""
    value = torch.zeros(documents.shape, device=query.device)
    column = torch.arange(documents.shape[1], device=query.device)
    for document in range(int(documents.max()) + 1):
        own = documents == document
        if valid is not None:
            own = own & valid
        last = torch.where(own, column, -1).amax(dim=1).clamp_min(0)
        seen = own if window is None else own & (column > (last - window)[:, None])
        row = attention_row(query.gather(2, _at(last, query)), key, scale, visible=seen, softcap=softcap)[:, 0]
        value = torch.where(own, row, value)
    return value


def _at(index: Tensor, x: Tensor) -> Tensor:
    return index[:, None, None, None].expand(-1, x.shape[1], 1, x.shape[3])


def _window(
    visible: Tensor | None, last: Tensor | None, past: int, length: int, window: int | None, like: Tensor
) -> Tensor | None:
    """(B, length) bool of the keys the last real query sees; None when it sees all."""
    column = torch.arange(length, device=like.device)
    if last is not None:
        upto = column <= (past + last)[:, None]
        visible = upto if visible is None else visible & upto
    if window is not None and window < length:
        end = torch.full((like.shape[0],), length - 1, device=like.device) if last is None else past + last
        near = column > (end - window)[:, None]
        visible = near if visible is None else visible & near
    return visible
