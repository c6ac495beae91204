"""GTP: every encoder block drops its lowest-ranked tokens, after a share of each went to its neighbours along a fixed graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.block_schedule import BlockSchedule
from tokenreduce.block_signals import AttentionMap, BlockInput
from tokenreduce.kernels.rows import unit_rows
from tokenreduce.matching import OutputOrder
from tokenreduce.method import Step
from tokenreduce.mixing import Mix
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import DROPPED, Reduction
from tokenreduce.schedules import schedule, spread
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range

GRAPHS = ("Mixed", "Spatial", "Semantic")
#: by the release's name without ``Mean`` or ``Max``, what of the attention map is looked at
LOOKS_AT: dict[str, tuple[Literal["cls", "received", "diagonal", "likeness"], ...]] = {
    "CLSAttn": ("cls",),
    "IMGAttn": ("received",),
    "DiagAttn": ("diagonal",),
    "MixedAttn": ("diagonal", "received"),
    "SumAttn": ("diagonal", "received"),
    "CosSim": ("likeness",),
}
SELECTIONS = tuple(name + heads for name in LOOKS_AT for heads in ("Mean", "Max"))


@dataclass(frozen=True, kw_only=True)
class GTP(BlockSchedule):
    """Tokens that are hard to make from others and widely attended to are kept: by default the rank is the attention a token
    pays itself times all it receives, each the largest of the heads. The others hand ``alpha`` times their edge to every
    kept neighbour, and leave. The graph is made once, of what enters the first block.

    Attributes:
        keep: fraction or count of the *patches* that leave the tower, hit exactly; None: 0.5, unless ``num_prop`` is given.
        num_prop: tokens that leave in each block, instead of ``keep``: a number, or a list, one per block, padded with 0.
        selection: what ranks: ``CLSAttn``, ``IMGAttn``, ``DiagAttn``, ``MixedAttn``, ``SumAttn`` or ``CosSim``, each with
            ``Mean`` or ``Max`` over heads.
        propagation: ``GraphProp``; or ``None``, the tokens are dropped.
        graph_type: edges to neighbours in the grid (``Spatial``), to the most alike tokens (``Semantic``), or both (``Mixed``).
        num_neighbours: the most alike tokens that each is joined to, at least 1.
        alpha: what of an edge is handed over, in [0, 1].
        token_scale: attention counts a token as often as it and what it was handed weigh.
        output_order: order in which a language model reads the rows. ``raster``: sorted by patch; ``reference``: by falling
            rank in the last block, ids renumbered.
        positions: policy of position ids in ``raster`` order.

    Source: Xu et al., "GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation", WACV 2024,
        arXiv 2311.03035, section 3.
    Departures from the release: attention is never sparsified (theta of the paper is 1), so that no map is made; ranks are
        float32 and ties go to the lowest index; without a [CLS] token there are exactly ``num_neighbours``, too; grids need not
        be square; nothing leaves where ``num_prop`` is 0.
    """

    name = "gtp"
    title = "drop low-ranked patches after a share of each went to its neighbours"
    paper = "arXiv 2311.03035"
    stages = ("encoder",)
    looks_at = "attention of every block, rows that enter the first"
    sees = "frame"

    schedules = {"num_prop": 0}

    num_prop: int | list[int] | None = None
    selection: str = "MixedAttnMax"
    propagation: Literal["GraphProp", "None"] = "GraphProp"
    graph_type: Literal["Mixed", "Spatial", "Semantic"] = "Mixed"
    num_neighbours: int = 8
    alpha: float = 0.2
    token_scale: bool = True
    output_order: OutputOrder = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("selection", self.selection, SELECTIONS)
        choice("propagation", self.propagation, ("GraphProp", "None"))
        choice("graph_type", self.graph_type, GRAPHS)
        in_range("alpha", self.alpha, 0.0, 1.0)
        in_range("num_neighbours", self.num_neighbours, 0 if self.graph_type == "Spatial" else 1, math.inf)
        if self.num_prop is None:
            return
        if isinstance(self.num_prop, bool) or not isinstance(self.num_prop, (int, list)):
            raise TypeError(
                f"num_prop={self.num_prop!r}; allowed: an int >= 0 (tokens that leave per block), or a list of such"
            )
        schedule(self.num_prop, len(self.num_prop) if isinstance(self.num_prop, list) else 1)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        heads: Literal["mean", "max"] = "max" if self.selection.endswith("Max") else "mean"
        looks_at = LOOKS_AT[self.selection.removesuffix("Max").removesuffix("Mean")]
        graph = self.propagation == "GraphProp"
        return tuple(
            Step(
                "encoder",
                layer=block,
                needs=(*(AttentionMap(block, of, heads) for of in looks_at), *[BlockInput(0)] * (graph and not block)),
                amount=count,
                proportional=self.token_scale and graph,
            )
            for block, count in enumerate(self._counts(facts))
            if count != 0 or not block  # the first block makes the graph
        )

    def _counts(self, facts: ModelFacts) -> Sequence[int | None]:
        depth = facts.feature_block + 1
        if self.num_prop is not None:
            return schedule(self.num_prop, facts.tower_depth)[:depth]
        if facts.tower_grid is None:
            return [None] * depth
        n = math.prod(facts.tower_grid)
        return spread(n - self.budget.count(n), depth)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        prefix, n = tokens.prefix, tokens.num_tokens - tokens.prefix
        notes, leaving = self.noted(tokens), min(int(tokens.amount), n - 1)
        if leaving <= 0:
            return Reduction.identity(tokens, positions=self.policy, notes=notes)
        order = self.rank(tokens)[:, prefix:].sort(dim=1, descending=True, stable=True).indices
        return self.propagated(tokens, order[:, : n - leaving], order[:, n - leaving :], notes)

    def propagated(self, tokens: VisualTokens, kept: Tensor, gone: Tensor, notes: Mapping[str, Tensor]) -> Reduction:
        """The plan by which the patches ``kept`` (B, K) stay, in that order, and ``gone`` (B, P) are handed to them."""
        prefix, own = tokens.prefix, tokens.source[:, tokens.prefix :] - tokens.prefix
        front = torch.arange(prefix, device=own.device).expand(len(own), prefix)
        rows = torch.arange(prefix, prefix + kept.shape[1], device=own.device).expand_as(kept)
        source = torch.cat([front, kept + prefix], dim=1)
        joined, mix, counts = torch.full_like(gone, DROPPED), None, None
        if notes:
            here, there = own.gather(1, kept), own.gather(1, gone)
            images = torch.arange(len(own), device=own.device)[:, None, None]
            share = self.alpha * notes["graph"][images, here[:, :, None], there[:, None]]
            most, joined = share.max(dim=1)  # a token is said to be in the row that is handed most of it
            joined = torch.where(most > 0, joined + prefix, DROPPED)
            scale = notes["scale"]
            weighs = scale.gather(1, here) + (share @ scale.gather(1, there)[..., None])[..., 0]
            ones = torch.ones_like(front, dtype=weighs.dtype)
            mix = Mix(rows, gone + prefix, share)
            counts = torch.cat([ones, weighs], dim=1) if self.token_scale else None
            notes = {**notes, "scale": scale.scatter(1, here, weighs)}
        rest = torch.zeros_like(own).scatter(1, torch.cat([kept, gone], dim=1), torch.cat([rows, joined], dim=1))
        assign = torch.cat([front, rest], dim=1)
        return Reduction(source, assign, positions=self.policy, mix=mix, counts=counts, notes=notes)

    def noted(self, tokens: VisualTokens) -> Mapping[str, Tensor]:
        """Graph (B, N0, N0) and scales (B, N0) of the patches that entered the tower; nothing where none is propagated."""
        if tokens.notes or self.propagation != "GraphProp":
            return tokens.notes
        own = tokens.source[:, tokens.prefix :] - tokens.prefix
        size = max(tokens.layout.num_tokens, own.shape[1])
        graph = torch.zeros(len(own), size, size, device=own.device)
        images = torch.arange(len(own), device=own.device)[:, None, None]
        graph[images, own[:, :, None], own[:, None]] = self.graph(tokens)
        return {"graph": graph, "scale": torch.ones(len(own), size, device=own.device)}

    def rank(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32, higher is kept first."""
        seen = [value.float() for need, value in tokens.signals.items() if isinstance(need, AttentionMap)]
        if self.selection.startswith("CosSim"):
            return -seen[0]
        if self.selection.startswith("SumAttn"):
            return seen[0] + seen[1]
        return seen[0] if len(seen) == 1 else seen[0] * seen[1]

    def graph(self, tokens: VisualTokens) -> Tensor:
        """(B, n, n) float32, what each patch (row) is handed of another (column): edges divided by the roots of both degrees."""
        prefix = tokens.prefix
        x = next((value for need, value in tokens.signals.items() if isinstance(need, BlockInput)), tokens.features)[
            :, prefix:
        ]
        n = x.shape[1]
        edges = torch.zeros(len(x), n, n, dtype=torch.bool, device=x.device)
        if self.graph_type != "Semantic":
            cell = (
                torch.arange(n, device=x.device).expand(len(x), n) if tokens.cell is None else tokens.cell[:, prefix:]
            )
            down, across = cell // tokens.layout.width, cell % tokens.layout.width
            edges = torch.stack([(side[:, :, None] - side[:, None]).abs() <= 1 for side in (down, across)]).all(dim=0)
        if self.graph_type != "Spatial":
            rows = unit_rows(x)
            alike = rows @ rows.mT
            least = alike.kthvalue(max(n - self.num_neighbours, 1), dim=2, keepdim=True).values
            edges |= alike >= least
        edges &= ~torch.eye(n, dtype=torch.bool, device=x.device)
        degree = edges.sum(dim=2).clamp_min(1).float().rsqrt()
        return edges * degree[:, :, None] * degree[:, None]
