"""Selection by how new each token's pixels are: all that are newer than a threshold, within what a budget allows."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.kernels.top_k import top_k
from tokenreduce.layout import Layout
from tokenreduce.reduction import PositionPolicy, Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded


def newer(novelty: Tensor, threshold: float, budget: Budget, positions: PositionPolicy) -> Reduction:
    """Keep the tokens whose ``novelty`` (B, N) is above ``threshold``, infinity for what nothing could foretell.

    A ``budget`` that adapts bounds their number, by the newest; any other sets it. Ties go to the lowest index.
    """
    n = novelty.shape[1]
    finite = torch.where(novelty.isinf(), 0, novelty)
    score = torch.where(novelty.isinf(), finite.amax(dim=1, keepdim=True), novelty)
    if not budget.adapts:
        return Reduction.select(top_k(novelty, budget.count(n)), n, score=score, positions=positions)
    kept = novelty > threshold
    if any(bound is not None for bound in budget.bounds):
        rank = top_k(novelty, n).argsort(dim=1)
        kept = rank < budget.limit(kept.sum(dim=1), n)[:, None]
    return Reduction.where(kept, score=score, positions=positions)


def on_grid(values: Tensor, layout: Layout, source: Tensor) -> tuple[Tensor, Tensor]:
    """``values`` (B, N, D) of the tokens ``source`` (B, N) in their cells, (B, T, h, w, D), NaN where there is none; and the
    cell of each token, (B, N)."""
    shape = (layout.frames, layout.height, layout.width)
    if layout.is_grid and values.shape[1] == layout.num_tokens:
        return values.unflatten(1, shape), torch.arange(values.shape[1], device=source.device).expand_as(source)
    cells = uploaded(layout.patches, source.device)[source]
    grid = values.new_full((len(values), layout.frames * layout.height * layout.width, values.shape[2]), torch.nan)
    return grid.scatter(1, cells[..., None].expand_as(values), values).unflatten(1, shape), cells


def unit_values(tokens: VisualTokens) -> Tensor:
    """The pixels of each token, (B, N, patches, C, frames, height, width)."""
    assert tokens.amount is not None, "the shape of a unit"
    return tokens.features.unflatten(-1, tokens.amount)
