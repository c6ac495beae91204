"""Listening to the attention of one block of one tower, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.block_signals import AttentionMap
from tokenreduce.kernels.attention_map import attention_map
from tokenreduce.kernels.attention_received import Over, attention_received
from tokenreduce.kernels.attention_row import Heads, attention_row
from tokenreduce.per_thread import PerThread
from tokenreduce.pipeline import ActivePipeline
from tokenreduce.signals import AttentionReceived, ClsAttention, Signal
from tokenreduce.uploading import uploaded


class TowerListener:
    """Tells ``listen`` the query, key, mask, scale and borders of every call of the attention.

    ``rows`` gives how many rows each picture has, where the tower packs them; None where it does not. Without flash attention
    such a tower calls its attention once per segment, and the segments wait until the module is done, to be listened to
    together; or once for all pictures, which a mask (1, 1, N, N) keeps apart.
    """

    segments = PerThread[list[tuple[Tensor, Tensor, float, Tensor | None]]](list)

    def __init__(
        self, listen: Callable[..., None], pipeline: ActivePipeline, rows: Callable[[], list[int] | None] | None = None
    ) -> None:
        self.listen = listen
        self.pipeline = pipeline
        self.rows = rows

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scale: float, cuts: Tensor | None
    ) -> None:
        if self.rows is None or cuts is not None:
            self.listen(query, key, mask, scale, cuts)
        elif not (isinstance(mask, Tensor) and mask.ndim == 4):
            self.segments += [
                (q, k, scale, None) for q, k in zip(query.split(1), key.split(1))
            ]  # of a batch, a row is one
        elif (rows := self.rows()) is None:
            return
        elif sum(rows) != key.shape[2] and mask.shape[2] == 1:  # of one segment: what its merged rows count for
            self.segments.append((query, key, scale, mask))
        else:
            self.listen(query, key, None, scale, borders(rows, query.device))

    @torch.no_grad()
    def whole(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook after the attention module; ``output`` is None where it raised."""
        segments, self.segments = self.segments, []
        if not segments or output is None:
            return
        queries, keys, scales, masks = zip(*segments)
        with self.pipeline.now.stopwatch(queries[0].device):
            cuts = borders([query.shape[2] for query in queries], queries[0].device)
            query, key = torch.cat(queries, dim=2), torch.cat(keys, dim=2)
            mask = None if any(own is None for own in masks) else torch.cat(masks, dim=3)
        self.listen(query, key, mask, scales[0], cuts)


def borders(rows: Iterable[int], device: torch.device) -> Tensor:
    """(S + 1,) of S segments of so many ``rows``."""
    return uploaded([0, *accumulate(rows)], device)


def attention_statistic(
    signal: Signal,
    query: Tensor,
    key: Tensor,
    mask: Any,
    scale: float,
    cuts: Tensor | None,
    there: Tensor | None,
    *,
    packed: bool,
    prefix: int = 0,
) -> Tensor:
    """What ``signal`` asks of an attention (B, H, N, d): (B, N); of a ``packed`` tower, sums over queries.

    ``there`` (B, N) bool: rows that are of an image, and not only as many as those of another; None: all. ``prefix``: rows in
    front of the patches.
    """
    assert isinstance(signal, (ClsAttention, AttentionReceived, AttentionMap))
    bias, visible, real = None, None, None
    if isinstance(mask, Tensor) and mask.ndim == 4:
        row = mask[:, 0, 0]  # what patches of the first query see, as all others do
        bias, visible = row if row.is_floating_point() else None, _open(row)
        real = visible
        if mask.shape[-1] == mask.shape[-2]:  # rows that may be seen, but do not see themselves, are padding, too
            real = visible & _open(mask[:, 0].diagonal(dim1=-2, dim2=-1))
    if there is not None:
        real = there if real is None else real & there
    if isinstance(signal, AttentionMap):
        if signal.of == "likeness" and prefix:
            patch = (torch.arange(query.shape[2], device=query.device) >= prefix).expand(len(query), -1)
            real = patch if real is None else real & patch
        own = {"bias": bias, "visible": visible, "query_mask": real, "cuts": cuts}
        return attention_map(query, key, scale, signal.of, heads=signal.heads, **own)
    if signal.heads == "joined":
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # heads may share keys
        query, key = (x.transpose(1, 2).flatten(2)[:, None] for x in (query, key))
        scale = query.shape[-1] ** -0.5
    if isinstance(signal, ClsAttention):
        heads: Heads = "max" if signal.heads == "max" else "mean"
        return attention_row(query[:, :, :1], key, scale, bias=bias, heads=heads)[:, 0]
    # windows of a packed picture differ in size: sums over their queries can be compared, means cannot
    over: Over = "sum" if packed else "mean"
    return attention_received(query, key, scale, bias=bias, visible=visible, query_mask=real, cuts=cuts, over=over)


def _open(mask: Tensor) -> Tensor:
    """Where ``mask``, of 0 and the lowest number, or bool, lets through."""
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask
