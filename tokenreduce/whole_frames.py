"""A video as frames that hold the same places: how many of them, its tokens frame by frame, what changes in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.kernels.temporal_similarity import temporal_similarity
from tokenreduce.layout import Layout
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded


def places_of(layout: Layout) -> int:
    """Tokens of a frame of a video."""
    return layout.num_tokens // layout.frames


def per_frame(tokens: VisualTokens, method: str) -> int:
    """Tokens of a frame; raises unless all frames of the video have the same cells and all their tokens are there."""
    layout, whole = tokens.layout, tokens.layout.num_tokens
    n, area = places_of(layout), layout.height * layout.width
    cells = None if layout.cells is None else [cell % area for cell in layout.cells]
    if tokens.num_tokens != whole or (cells is not None and cells != cells[:n] * layout.frames):
        raise ValueError(
            f"method={method!r} compares whole frames, but {tokens.num_tokens} of {whole} tokens of a video of "
            f"{layout.frames} frames arrive, or frames differ in shape; allowed: first among the methods of its stage, with "
            "nothing merged in the encoder, where the processor leaves no token of a video out"
        )
    return n


def by_frame(tokens: VisualTokens, method: str) -> Tensor:
    """(B, T, N, D) features of videos of T frames; raises as ``per_frame``."""
    n = per_frame(tokens, method)
    return tokens.features.unflatten(1, (tokens.layout.frames, n))


def similarity(x: Tensor) -> Tensor:
    """(B, T - 1, N) float32, cosine of the tokens ``x`` (B, T, N, D) at the same place of neighbouring frames."""
    batch, frames, n, _ = x.shape
    found = x.new_zeros(batch * frames, n, dtype=torch.float32)  # between two videos nothing is compared
    found[: batch * frames - 1] = temporal_similarity(x.flatten(0, 1))
    return found.unflatten(0, (batch, frames))[:, :-1]


def lowest_per_frame(score: Tensor, count: Tensor) -> Tensor:
    """(B, T, N) bool, the ``count`` (B, T) or (T,) tokens of lowest ``score`` (B, T, N) of each frame; ties: the lowest index."""
    rank = score.sort(dim=-1, stable=True).indices.argsort(dim=-1)
    return rank < count[..., None]


def stacked(plans: Sequence[tuple[Tensor, Tensor, Tensor | None]], **more: Any) -> Reduction:
    """One plan for several videos: of each row (T * N,), source (K,) and weight (T * N,), K its own."""
    assigns, sources, weights = zip(*plans)
    source, valid = filled_up(sources)
    weight = None if weights[0] is None else torch.stack(weights)
    return Reduction.merge(torch.stack(assigns), source, weight, valid=valid, **more)


def by_first(group: Tensor) -> tuple[Tensor, Tensor]:
    """Row (N,) and source (K,) of tokens that join those of the same ``group`` (N,) long; rows sit at their first token, in
    the order of these."""
    values, number = group.unique(return_inverse=True)
    index = torch.arange(len(group), device=group.device)
    first = index.new_full((len(values),), len(group)).scatter_reduce_(0, number, index, "amin")
    source, order = first.sort()
    return order.argsort()[number], source


def padded(plans: Sequence[tuple[Tensor, Tensor, Tensor]], **more: Any) -> Reduction:
    """One plan for several videos: of each row (N,), source (K,) and features (K, D), K its own."""
    assigns, sources, rows = zip(*plans)
    (source, valid), (features, _) = filled_up(sources), filled_up(rows)
    return Reduction(source=source, assign=torch.stack(assigns), features=features, valid=valid, **more)


def filled_up(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``rows`` (K, ...) of several videos, K its own, as one (B, K, ...) with zeros behind; which exist, (B, K) bool."""
    counts = uploaded([len(own) for own in rows], rows[0].device)
    together = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return together, torch.arange(together.shape[1], device=counts.device) < counts[:, None]
