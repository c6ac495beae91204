"""HiPrune: anchors, buffers and registers from hierarchical encoder attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.kernels.top_k import top_k
from tokenreduce.layout import Layout
from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.reduction import PositionPolicy, Reduction
from tokenreduce.signals import AttentionReceived
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range, whole

ROLES = ("dropped", "anchor", "buffer", "register")


@dataclass(frozen=True, kw_only=True)
class HiPrune(Method):
    """Keep the most attended tokens of a middle block (anchors), their four neighbours (buffers) and, up to the exact
    budget, the most attended remaining tokens of the block that yields the features (registers).

    Attributes:
        keep: fraction of N, or count T per image.
        alpha: upper bound of the share of anchors and buffers, in [0, 1]; ``round(alpha * T / 5)`` anchors.
        object_layer: middle block counted from 1 as in the paper; None scales 9 of 24 to the depth of the tower;
            where most blocks attend within windows, the one nearest to the middle that does not (the release: 16 of 32).
        border: ``clamp`` as released (a neighbour beyond a row end is the next token in raster order, one beyond the
            grid the first or last token), or ``drop``, which skips neighbours outside the grid.
        parity: ``paper`` fills the budget exactly; ``release`` excludes chosen tokens by subtracting 1 from their
            score, which on towers whose scores exceed 1 (2x2-merged) can lose tokens.
        positions: the LLaVA release renumbers, the Qwen release keeps; the default keeps position ids.

    Source: Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language
        Models", 2025, arXiv 2508.00553, section 4.
    Departures from the release: budget per image, never shared between samples; when alpha is so high that anchors and
        buffers overflow the budget, buffers of the lowest object score are dropped (the release raises).
    """

    name = "hiprune"
    title = "anchors, buffers, registers"
    paper = "arXiv 2508.00553"
    stages = ("projector",)
    looks_at = "attention received in a middle and in the feature block"
    sees = "frame"

    alpha: float = 0.1
    object_layer: int | None = None
    border: Literal["clamp", "drop"] = "clamp"
    parity: Literal["paper", "release"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("alpha", self.alpha, 0.0, 1.0)
        choice("border", self.border, ("clamp", "drop"))
        choice("parity", self.parity, ("paper", "release"))
        more = ": a vision block counted from 1. The paper uses 9 of 24."
        whole("object_layer", self.object_layer, 1, more, none=True)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        layer = self.object_layer or default_object_layer(facts)
        if not 1 <= layer <= facts.feature_block + 1:
            raise ValueError(
                f"object_layer={layer} is outside [1, {facts.feature_block + 1}], the vision blocks up to the one that "
                "yields the features, counted from 1"
            )
        return (Step("projector", needs=(AttentionReceived(layer - 1), AttentionReceived(facts.feature_block))),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        scores = list(tokens.signals.values())
        return select(
            scores[0],
            scores[-1],
            self.budget.count(tokens.num_tokens),
            tokens.source,
            tokens.layout,
            alpha=self.alpha,
            border=self.border,
            parity=self.parity,
            positions=self.positions,
        )


def default_object_layer(facts: ModelFacts) -> int:
    """9 of the 24 blocks of CLIP-L; in a tower of windows the block nearest to the middle that sees the whole image."""
    if facts.full_blocks:
        return min(facts.full_blocks, key=lambda block: (abs(block + 1 - facts.tower_depth / 2), block)) + 1
    return max(1, round(9 / 24 * facts.tower_depth))


def select(
    object_score: Tensor,
    deep_score: Tensor,
    k: int,
    source: Tensor,
    layout: Layout,
    *,
    alpha: float = 0.1,
    border: str = "clamp",
    parity: str = "paper",
    positions: PositionPolicy = "keep",
) -> Reduction:
    """Section 4: (B, N) object and deep scores of tokens sitting at ``source`` (B, N) of ``layout`` -> K survivors.

    One sort by score and one by role instead of variable-size sets: anchors first, then buffers by object score, then
    registers by deep score.
    """
    object_score, deep_score = object_score.float(), deep_score.float()
    n = object_score.shape[1]
    anchor_index = top_k(object_score, round(k * alpha / 5))
    anchor = torch.zeros_like(object_score, dtype=torch.bool).scatter_(1, anchor_index, True)
    buffer = neighbours(anchor_index, source, layout, border) & ~anchor
    role = torch.where(anchor, 1, torch.where(buffer, 2, 3))
    score = torch.where(anchor | buffer, object_score, deep_score)
    order = top_k(score, n)
    keep = order.gather(1, top_k(-role.gather(1, order), k))
    kept = torch.zeros_like(anchor).scatter_(1, keep, True)
    if parity == "release":
        return _released((anchor | buffer) & kept, deep_score, k, role, positions)
    return Reduction.select(keep, n, role=role * kept, role_names=ROLES, score=score, positions=positions)


def neighbours(index: Tensor, source: Tensor, layout: Layout, border: str) -> Tensor:
    """(B, N) bool: tokens at the four grid neighbours of the tokens ``index`` (B, A)."""
    height, width, frame = layout.height, layout.width, layout.height * layout.width
    cells = layout.frames * frame
    cell_of = torch.arange(cells) if layout.cells is None else torch.tensor(layout.cells)
    cell = cell_of.to(source.device)[source]
    at = cell.gather(1, index)
    flag = torch.zeros(source.shape[0], cells + 1, dtype=torch.bool, device=source.device)
    place = at % frame
    column, row = place % width, place // width
    for step, inside in ((-1, column > 0), (1, column < width - 1), (-width, row > 0), (width, row < height - 1)):
        clamped = at - place + (place + step).clamp(0, frame - 1)
        flag.scatter_(1, clamped if border == "clamp" else torch.where(inside, at + step, cells), True)
    return flag.gather(1, cell)


def _released(chosen: Tensor, deep_score: Tensor, k: int, role: Tensor, positions: PositionPolicy) -> Reduction:
    """The released exclusion rule: ``score - 1``; registers that fall on chosen tokens are lost, counts may differ."""
    registers = deep_score - chosen.float()
    order = registers.sort(dim=1, descending=True, stable=True).indices
    place = torch.arange(order.shape[1], device=order.device)
    room = (k - chosen.sum(dim=1, keepdim=True)).clamp_min(0)
    kept = chosen | torch.zeros_like(chosen).scatter_(1, order, place < room)
    return Reduction.where(kept, role=role * kept, role_names=ROLES, positions=positions)
