"""Attention masks of a shortened decoder layer: causal, sliding, and with blocks of tokens that attend both ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.sequence_packing import LayerPackings, Packing
from tokenreduce.adapters.upstream.cache import Cache
from tokenreduce.adapters.upstream.decoder import layer_type
from tokenreduce.adapters.upstream.masks import layer_mask


class LayerMasks:
    """The masks of one decoder pass: which columns each layer holds, and which tokens attend both ways.

    Attributes:
        past: per layer, columns it held before this chunk; ``past_real``, (B, past) bool of the real ones, None: all.
        holders: per layer, the one whose keys and values it attends to.
        real: per layer, the same with this chunk; known once ``visible`` was asked for.
        two_way: (B, L) long, blocks of columns that attend to each other both ways; -1: none. None: all is causal.
        two_way_layers: kinds of layers in which such blocks attend both ways; None: all.
        windowed: whether sliding windows cut such blocks.
        documents: (B, L) long, the document of each column, where a row holds several that must not see each other.
        chunks: (B, L) long, chunk of a video that each column belongs to, and how many before its own each sees; -1: none.
        given: (B, L, L) bool, which columns see which, where the caller said so in a way that is none of these.
    """

    def __init__(
        self,
        config: Any,
        packings: LayerPackings,
        cache: Cache | None,
        past: list[int],
        past_real: list[Tensor | None],
        holders: list[int],
    ) -> None:
        self.config = config
        self.packings = packings
        self.cache = cache
        self.past = past
        self.past_real = past_real
        self.holders = holders
        self.real: list[Tensor | None] = [None] * len(past)
        self.two_way: Tensor | None = None
        self.two_way_layers: tuple[str, ...] | None = None
        self.windowed = True
        self.documents: Tensor | None = None
        self.chunks: tuple[Tensor, int] | None = None
        self.given: Tensor | None = None
        self._once: dict[Any, Any] = {}

    def _memo(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def visible(self, layer: int) -> Tensor | None:
        """(B, past + W) bool of real columns for ``layer``, this chunk included; None when all are."""
        start = self.packings.start(layer)
        self.real[layer] = self._extended(layer, ("real", start), self.packings.by_first[start])
        return self.real[layer]

    def trimmed(self, layer: int, survivors: Packing) -> None:
        """Note that the cache of ``layer`` holds the ``survivors`` of this chunk only."""
        self.real[layer] = self._extended(layer, ("trimmed", id(survivors)), survivors)

    def _extended(self, layer: int, key: Any, packing: Packing) -> Tensor | None:
        """Layers of equal history share one tensor."""
        old, past = self.past_real[layer], self.past[layer]
        return self._memo((*key, id(old), past), partial(_extended, old, past, packing))

    def mask(self, layer: int, hidden: Tensor) -> Any:
        """The attention mask of ``layer`` for its own cache length, as its attention backend takes it."""
        kind = layer_type(self.config, layer)
        visible = self.visible(layer)
        if visible is None and self.cache is None:
            visible = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        key = ("mask", kind, self.past[layer], self.packings.start(layer), id(self.past_real[layer]))
        return self._memo(key, partial(self._mask, layer, kind, hidden, visible))

    def without(self, layer: int, hidden: Tensor, unread: Tensor) -> Any:
        """The mask of ``layer`` for one new token that sees none of the columns ``unread`` (B, past + 1)."""
        visible = self.visible(layer)
        key = ("unread", layer_type(self.config, layer), self.past[layer], id(visible), id(unread))
        seen = ~unread if visible is None else visible & ~unread
        return self._memo(key, partial(self._mask, layer, layer_type(self.config, layer), hidden, seen))

    @property
    def caller_says(self) -> bool:
        """Whether the caller said more about who sees whom than which columns are padding."""
        return self.documents is not None or self.given is not None

    @property
    def says_more(self) -> bool:
        """Whether masks say more than which columns are padding, and have to be made."""
        return self.caller_says or self.chunks is not None

    def documents_at(self, layer: int) -> Tensor | None:
        """(B, W) long, the document of each slot."""
        return None if self.documents is None else self.documents.gather(1, self.packings.at(layer).order)

    def given_at(self, layer: int) -> Tensor | None:
        """(B, W, W) bool, the caller's mask without the columns that are gone."""
        if self.given is None:
            return None
        packing = self.packings.at(layer)
        rows = torch.arange(len(self.given), device=self.given.device)[:, None, None]
        left = self.given[rows, packing.order[:, :, None], packing.order[:, None, :]]
        return left if packing.valid is None else left & packing.valid[:, None, :]

    def _mask(self, layer: int, kind: str, hidden: Tensor, visible: Tensor | None) -> Any:
        own = self.given_at(layer)
        if own is not None:
            return additive(own, hidden)
        blocks = None if hidden.shape[1] == 1 else self._blocks(layer)
        return layer_mask(
            self.config,
            kind,
            self.cache,
            self.holders[layer],
            hidden,
            visible,
            also=None if blocks is None else both_ways(blocks, self.past[layer]),
            windowed=self.windowed,
            only=self._only(layer),
        )

    def _only(self, layer: int) -> Callable[..., Tensor] | None:
        """Mask function of the pairs that may see each other at all; None: all."""
        if self.chunks is not None:
            chunk, before = self.chunks
            return near_chunk(chunk.gather(1, self.packings.at(layer).order), before, self.past[layer])
        return None if self.documents is None else same_document(self.documents_at(layer))

    def _blocks(self, layer: int) -> Tensor | None:
        """(B, W) long, the block of each slot; -1: none. None where all is causal."""
        kinds = self.two_way_layers
        if self.two_way is None or (kinds is not None and layer_type(self.config, layer) not in kinds):
            return None
        packing = self.packings.at(layer)
        block = self.two_way.gather(1, packing.order)
        return block if packing.valid is None else block.masked_fill(~packing.valid, -1)

    def sees_up_to(self, layer: int) -> Tensor | None:
        """(B, W) long, the last slot that each slot attends to in this chunk; None where all is causal."""
        blocks = self._blocks(layer)
        return None if blocks is None else ends_of(blocks)

    def whole_block(self, layer: int) -> bool:
        """Whether all tokens of this chunk attend to each other, whatever the window of ``layer``."""
        blocks, valid = self._blocks(layer), self.packings.at(layer).valid
        if blocks is None or self.windowed:
            return False
        return bool((blocks == 0 if valid is None else (blocks == 0) | ~valid).all())


def _extended(old: Tensor | None, past: int, packing: Packing) -> Tensor | None:
    """Real columns after ``packing`` joined ``past`` ones, of which ``old`` are real."""
    if packing.valid is None and old is None:
        return None
    batch, device = packing.order.shape[0], packing.order.device
    new = packing.valid
    if new is None:
        new = torch.ones(batch, packing.width, dtype=torch.bool, device=device)
    # a cropped cache is shorter than what was noted
    seen = torch.ones(batch, past, dtype=torch.bool, device=device) if old is None else old[:, :past]
    return torch.cat([seen, new], dim=1)


def additive(seen: Tensor, hidden: Tensor) -> Tensor:
    """(B, 1, W, W) what is added to the logits where ``seen`` (B, W, W) bool says who sees whom, in the dtype of ``hidden``.

    A row that sees nothing, as padding does, sees itself.
    """
    eye = torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
    seen = seen | (eye & ~seen.any(dim=2, keepdim=True))
    mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
    return mask.masked_fill(~seen, torch.finfo(hidden.dtype).min)[:, None]


def same_document(documents: Tensor | None) -> Callable[..., Tensor]:
    """Mask function: whether query and key belong to the same of the ``documents`` (B, W)."""
    assert documents is not None

    def same(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return documents[b, q] == documents[b, k]

    return same


def sees_chunk(query: Tensor, key: Tensor, before: int) -> Tensor:
    """Whether a query in one chunk of a video may see a key in another: of its own, or up to ``before`` ones before it.

    -1, no chunk, sees and is seen by all. Source: Video-XL-2, arXiv 2506.19225.
    """
    return (query - key <= before) | (query < 0) | (key < 0)


def near_chunk(chunk: Tensor, before: int, past: int) -> Callable[..., Tensor]:
    """Mask function: the same of the ``chunk`` (B, W) of each slot, which start at column ``past``."""
    last = chunk.shape[1] - 1

    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < past) | sees_chunk(chunk[b, q - past], chunk[b, (k - past).clamp(0, last)], before)

    return near


def both_ways(blocks: Tensor, past: int) -> Callable[..., Tensor]:
    """Mask function: whether query and key belong to the same of the ``blocks`` (B, W), which start at column ``past``."""
    last = blocks.shape[1] - 1

    def same_block(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = (k >= past) & (k - past <= last)
        mine, other = blocks[b, q - past], blocks[b, (k - past).clamp(0, last)]
        return inside & (mine == other) & (mine >= 0)

    return same_block


def ends_of(blocks: Tensor) -> Tensor:
    """(B, W) long, last slot of the block of each slot of ``blocks`` (B, W); its own where it is in none."""
    slot = torch.arange(blocks.shape[1], device=blocks.device).expand_as(blocks)
    free = blocks < 0
    ends = torch.full_like(blocks, -1).scatter_reduce(1, blocks.clamp_min(0), torch.where(free, -1, slot), "amax")
    return torch.where(free, slot, ends.gather(1, blocks.clamp_min(0)))
