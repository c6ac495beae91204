"""Listening to the attention of one block of one tower."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.per_thread import PerThread
from tokenreduce.pipeline import ActivePipeline


class TowerListener:
    """Tells ``listen`` the query, key, mask, scale and borders of every call of the attention.

    Without flash attention a tower that ``packs`` pictures calls its attention once per segment; the segments wait until
    the module is done, and are listened to together.
    """

    segments = PerThread[list[tuple[Tensor, Tensor, float]]](list)

    def __init__(self, listen: Callable[..., None], pipeline: ActivePipeline, packs: bool) -> None:
        self.listen = listen
        self.pipeline = pipeline
        self.packs = packs

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scale: float, cuts: Tensor | None
    ) -> None:
        if self.packs and cuts is None:
            self.segments.append((query, key, scale))
        else:
            self.listen(query, key, mask, scale, cuts)

    @torch.no_grad()
    def whole(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook after the attention module; ``output`` is None where it raised."""
        segments, self.segments = self.segments, []
        if not segments or output is None:
            return
        queries, keys, scales = zip(*segments)
        with self.pipeline.now.stopwatch(queries[0].device):
            borders = torch.tensor([0, *accumulate(query.shape[2] for query in queries)])
            cuts = borders.to(queries[0].device, non_blocking=True)
            query, key = torch.cat(queries, dim=2), torch.cat(keys, dim=2)
        self.listen(query, key, None, scales[0], cuts)
