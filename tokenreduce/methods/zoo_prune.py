"""ZOO-Prune: how far the projector's output moves when a row is pushed a little, times the distance to what is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels.fingerprint import hash_normal
from tokenreduce.kernels.greedy_selection import max_min_selection
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.projection import Projector
from tokenreduce.projector_rows import rows_substitute
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ProjectorInput
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import whole

CHUNK = 2**22  # numbers of a layer that are held at once


@dataclass(frozen=True, kw_only=True)
class ZOOPrune(Method):
    """Push every row that enters the projector along the same random directions and measure how far its feature moves; keep
    greedily the tokens of largest movement times cosine distance to the nearest one kept.

    Attributes:
        keep: fraction of N, or count K per image, tile or frame.
        directions: m >= 1 of the paper, 64.
        h: length of a push, > 0; the paper uses 0.01 and finds 1e-4 to 1 alike.
        rank: singular triples to which both layers of the projector are cut for the movement, as the release does with 128
            on LLaVA-NeXT; None: the layers as they are.
        seed: of the table of directions, which is the same for all prompts.

    Source: "ZOO-Prune: Training-Free Token Pruning via Zeroth-Order Gradient Estimation in Vision-Language Models", CVPR 2026,
        arXiv 2509.24837.
    Departures from the release: float32; directions from a table instead of new ones per prompt; exact shares of tiles;
        newlines stay. Where the projector is not two linear layers, the derivative itself stands for the difference.
    """

    name = "zoo_prune"
    title = "sensitivity of the projector, and distance"
    paper = "arXiv 2509.24837"
    stages = ("projector",)
    looks_at = "rows before the projector, the projector as a function, features"
    sees = "frame"

    directions: int = 64
    h: float = 0.01
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for argument, low in (("directions", 1), ("rank", 1), ("seed", 0)):
            more = ". The paper uses 64 directions, rank 128."
            whole(argument, getattr(self, argument), low, more, none=argument == "rank")
        if isinstance(self.h, bool) or not isinstance(self.h, (int, float)) or not self.h > 0:
            raise ValueError(f"h={self.h!r}; allowed: a number > 0, the length of a push. The paper uses 0.01.")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector", needs=(ProjectorInput(),)),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return rows_substitute(facts, True)

    @torch.no_grad()
    def reduce(self, tokens: VisualTokens) -> Reduction:
        rows = tokens.signal(ProjectorInput())
        pushes = hash_normal(torch.arange(self.directions, device=rows.device), rows.shape[2], self.seed)
        moved = sensitivity(rows, pushes, tokens.projector, self.h, self.rank)
        order = select(tokens.features, moved, self.budget.count(tokens.num_tokens))
        return Reduction.select(order, tokens.num_tokens, score=moved, positions=self.positions)


def sensitivity(
    rows: Tensor, directions: Tensor, project: Projector, h: float = 0.01, rank: int | None = None
) -> Tensor:
    """(B, N) mean over ``directions`` (m, C), brought to length 1, of |P(x + h u) - P(x - h u)| / 2h for ``rows`` (B, N, C).

    Of two linear layers, the first is applied to rows and directions once, and the second to differences only.
    """
    unit = directions.float() / (directions.float().norm(dim=1, keepdim=True) + 1e-12)
    layers = project.linear
    if layers is None:
        return torch.stack([_slope(project, rows, u) for u in unit]).mean(dim=0)
    first, second = (w.detach().float() for w in (layers.first, layers.second))
    if rank is not None:  # the left vectors of the second layer have length 1, and change no norm
        u, s, v = _triples(first, rank)
        first = (u * s) @ v
        _, s, v = _triples(second, rank)
        second = s[:, None] * v
    at = F.linear(rows.float(), first, None if layers.first_bias is None else layers.first_bias.float())
    total = torch.zeros(rows.shape[:2], device=rows.device)
    many = max(1, CHUNK // at.numel())
    for pushed in (F.linear(unit, first) * h).split(many):
        step = pushed[:, None, None]
        moved = F.linear(layers.act(at + step) - layers.act(at - step), second)
        total += moved.norm(dim=3).sum(dim=0)
    return total / (len(unit) * 2 * h)


def _slope(project: Projector, rows: Tensor, u: Tensor) -> Tensor:
    """(B, N) length of the derivative along ``u`` (C,), without the rounding of a difference."""
    along = u.to(rows.dtype).expand_as(rows)
    return torch.func.jvp(project, (rows,), (along,))[1].float().norm(dim=2)


def _triples(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading ``rank`` singular triples of ``weight`` (out, in)."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :rank], s[:rank], v[:rank]


def select(features: Tensor, moved: Tensor, k: int) -> Tensor:
    """(B, K) tokens in the order taken: first the one that ``moved`` (B, N) most, then by movement, scaled to [0, 1] within
    the image, times the cosine distance of its row of ``features`` (B, N, D) to the nearest one taken. Ties: lowest index.
    """
    low, high = moved.amin(dim=1, keepdim=True), moved.amax(dim=1, keepdim=True)
    weight = torch.where(high > low, (moved - low) / (high - low + 1e-8), 1.0)
    return max_min_selection(features, min(k, moved.shape[1]), weight=weight, first=weight.argmax(dim=1))
