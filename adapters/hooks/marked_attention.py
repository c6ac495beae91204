"""What one attention of the decoder is heard to compare, and what text that a method marked pays the tokens of its picture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.upstream.decoder import layer_type, rotated_ones, softcap_of
from tokenreduce.groups import ImageGroup
from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.corrected_attention import corrected_attention
from tokenreduce.kernels.rows import row_blocks, take_rows
from tokenreduce.signals import AttentionRank, CorrectedAttention, TextAttention

HEADS = 14  # of 28, in which marked text is believed


class Heard:
    """What one attention was heard to compare, and who may see whom there.

    Attributes:
        query: (B, H, W, d); ``key``: (B, H_kv, past + W, d), columns that a sliding cache forgot being zero.
        visible: (B, past + W) bool of real columns; None: all. ``window``: tokens that a query sees at most; None: no limit.
        chunk: tokens of the chunks, counted from the first real column, within which queries see; None: all are in one.
    """

    def __init__(
        self,
        reduced: DecoderPass,
        layer: int,
        module: Any,
        query: Tensor,
        key: Tensor,
        scale: float,
        rotates: bool = True,
    ) -> None:
        self.reduced, self.layer, self.rotates = reduced, layer, rotates
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
        chunk = config.attention_chunk_size if layer_type(config, layer) == "chunked_attention" else length
        self.chunk: int | None = chunk if chunk < length else None

    def rotated_ones(self) -> Tensor:
        """(B, W, E) all-ones vectors as this layer rotates them, at length 1."""
        if not self.rotates:
            return self.query.new_ones(len(self.query), self.packing.width, 1)
        positions = self.reduced.positions
        kind = layer_type(self.reduced.masks.config, self.layer)
        width = self.query.shape[3]
        return rotated_ones(positions.decoder, self.query.float(), positions.own(self.layer), kind, width)

    def place(self) -> Tensor | None:
        """(B, W) column that each query sees up to; None where all is causal."""
        self.refuse_chunks()
        upto = self.reduced.masks.sees_up_to(self.layer)
        if upto is None:
            return None
        if self.window is not None and self.window < self.key.shape[2]:
            raise ValueError(
                f"attention received in decoder layer {self.layer} is asked for, a layer in which image tokens attend both ways "
                f"within a sliding window of {self.window} tokens; choose a layer of full attention (config.layer_types)"
            )
        return upto + self.past

    def refuse_chunks(self) -> None:
        """The last query's chunk is known; other queries are taken to see all that comes before them."""
        if self.chunk is not None:
            raise ValueError(
                f"attention of several queries of decoder layer {self.layer} is asked for, but these see chunks of {self.chunk} "
                f"tokens, fewer than the {self.key.shape[2]} of this prompt; choose a layer of full attention "
                "(config.layer_types), or a method that asks for the last query alone"
            )


def by_marked(heard: Heard, signal: TextAttention, upto: Tensor | None) -> Tensor:
    """(M, W) attention that the marked tokens of text of each of M pictures pay, or (M,) its rank; 0 where none is marked."""
    reduced, query, key = heard.reduced, heard.query, heard.key
    pictures = sum(len(group.members) for group in reduced.groups)
    if isinstance(signal, AttentionRank):
        value = query.new_zeros(pictures, dtype=torch.long)
    else:
        value = query.new_zeros(pictures, query.shape[2], dtype=torch.float32)
    for group in reduced.groups:
        marked = next((notes["queries"] for notes in group.notes.values() if "queries" in notes), None)
        if marked is None or not marked.shape[1]:
            continue
        assert reduced.text is not None, "a column is known from text"
        samples, there = group.samples, marked >= 0
        slots = heard.packing.slot[samples[:, None], reduced.text.at(samples, marked.clamp_min(0))]
        place = slots + heard.past if upto is None else upto[samples].gather(1, slots)
        rows = query[samples].gather(2, slots[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        if isinstance(signal, AttentionRank):
            value[group.members] = _rank(heard, group, rows, place, there)
            continue
        if isinstance(signal, CorrectedAttention):
            value[group.members] = _corrected(heard, signal, group, rows, slots, place, there)
            continue
        paid = attention_received(
            rows,
            key[samples],
            heard.scale,
            visible=None if heard.visible is None else heard.visible[samples],
            softcap=heard.softcap,
            causal=True,
            place=place,
            window=heard.window,
            query_mask=there,
            over=signal.over,
        )[:, heard.past :]
        value[group.members] = paid.masked_fill(~there.any(dim=1, keepdim=True), 0)
    return value


def _seen(heard: Heard, samples: Tensor, place: Tensor) -> Tensor:
    """(M, R, past + W) bool of the keys that queries at ``place`` (M, R) of the rows ``samples`` (M,) see."""
    column = torch.arange(heard.key.shape[2], device=place.device)
    seen = column <= place[..., None]
    if heard.window is not None:
        seen &= column > place[..., None] - heard.window
    if heard.visible is not None:
        seen &= heard.visible[samples][:, None]
    return seen


def _rank(heard: Heard, group: ImageGroup, rows: Tensor, place: Tensor, there: Tensor) -> Tensor:
    """(M,) long of one group's pictures, by the queries ``rows`` (M, H, R, d), which see up to ``place`` (M, R)."""
    samples = group.samples
    key, seen = heard.key[samples], _seen(heard, samples, place)
    own = heard.packing.slot[samples[:, None], group.seats] + heard.past
    blocks = []
    for block in row_blocks(rows.shape[2], rows.shape[1] * key.shape[2]):
        paid = attention_row(rows[:, :, block], key, heard.scale, visible=seen[:, block], softcap=heard.softcap)
        blocks.append(paid.gather(2, own[:, None].expand(-1, paid.shape[1], -1)))
    paid = torch.cat(blocks, dim=1).masked_fill(~there[..., None], 0)
    size = torch.linalg.svdvals(paid)
    side = there.sum(dim=1, keepdim=True).clamp_min(own.shape[1])
    return (size > size.amax(dim=1, keepdim=True) * side * torch.finfo(size.dtype).eps).sum(dim=1)


def _corrected(
    heard: Heard,
    signal: CorrectedAttention,
    group: ImageGroup,
    rows: Tensor,
    slots: Tensor,
    place: Tensor,
    there: Tensor,
) -> Tensor:
    """(M, W) of one group's pictures, by the queries ``rows`` (M, H, R, d) in ``slots`` (M, R), which see up to ``place``."""
    samples, heads = group.samples, rows.shape[1]
    own = heard.packing.slot[samples[:, None], group.seats]
    ones = heard.rotated_ones()[samples]
    paid = corrected_attention(
        rows,
        heard.key[samples],
        heard.scale,
        (take_rows(ones, slots), take_rows(ones, own)),
        own + heard.past,
        visible=_seen(heard, samples, place),
        real=there,
        heads=signal.heads or (HEADS if heads >= 2 * HEADS else max(1, heads // 2)),
        least=signal.least,
        softcap=heard.softcap,
    )
    return paid.new_zeros(len(own), heard.packing.width).scatter_(1, own, paid)
