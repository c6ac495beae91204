"""Expediting: after half of the blocks, soft clusters of neighbouring patches; for dense heads every patch again behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.block_schedule import BlockSchedule
from tokenreduce.matching import OutputOrder
from tokenreduce.method import Step
from tokenreduce.mixing import Mix
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.soft_clusters import Cells, nearest, neighbour_temperature, rebuilding, soft_clusters
from tokenreduce.token_rectangles import Rectangle, rectangles
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded
from tokenreduce.validation import at_most, choice, whole


class Target(NamedTuple):
    """What a step is to leave: ``rows`` of them, or a ``grid``; ``restores``, whether every patch is wanted again."""

    rows: int
    grid: tuple[int, int] | None
    restores: bool

    def cells(self, size: tuple[int, int]) -> Cells:
        if self.grid is None:
            return Cells.of(size, self.rows)
        if self.grid[0] > size[0] or self.grid[1] > size[1]:
            raise ValueError(
                f"grid={self.grid} of an image of {size[0]} x {size[1]} tokens; allowed: at most as many rows and columns. For "
                "any size of image give keep"
            )
        return Cells(*size, (self.grid[1],) * self.grid[0])


class Clustered(NamedTuple):
    """What became of the tokens of B images of one shape.

    Attributes:
        seats: (B, M) long, the token in the middle of each cell; ``nearest``, (B, N) long, the nearest centre to each token.
        share: (B, M, N), what of each token a centre is made of; ``again``, (B, N, M), what of each centre a token.
    """

    seats: Tensor
    nearest: Tensor
    share: Tensor
    again: Tensor


@dataclass(frozen=True, kw_only=True)
class Expediting(BlockSchedule):
    """Means of a grid of h x w cells are refined as soft k-means, each patch among the nearest cells only; the other blocks run
    on these centres. A dense head finds every patch again: a weighted sum of the refined centres, with weights of how near it
    was to them when they were made.

    Attributes:
        keep: fraction or count of the *patches* that there are to be of centres, hit exactly, in a grid of about the shape of the
            image's; where none has that many cells, rows of it differ by one. None: 0.5, unless ``grid`` is given.
        grid: (h, w) instead of ``keep``.
        alpha: blocks that run on all patches, from 1 on; None: half of them.
        iterations: of the clustering; ``window``, odd, the side of the square of cells whose centres a patch may join.
        temperature: what squared distances are multiplied by, summed over channels; None: 20 over their mean between neighbours,
            image by image.
        reconstruct: whether every patch is made again behind the last block. None: yes in an encoder alone, no in a
            vision-language model, which then reads the centres alone.
        reconstruct_temperature: that of these weights; None: ``temperature``.
        k: centres that a patch is made of, the nearest; below 0, all.
        norm: weights of a patch are divided by their ``sum``, as in the paper, or by the root of their squares, ``l2``, as in the
            release.
        naive: a patch is a copy of its nearest centre instead.
        output_order: order in which a language model reads the centres. ``raster``: of the patch in the middle of each cell;
            ``reference``: the same, ids renumbered.
        positions: policy of position ids in ``raster`` order.

    Source: Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning", NeurIPS 2022,
        arXiv 2210.01035, section 3.
    Departures from the release: patches are made again of what the last block returns, in front of the norm behind it; the
        nearest centre weighs 1 before weights are divided, so that none vanish; home cells come from whole numbers; more centres
        than there are count as all of them.
    """

    name = "expediting"
    title = "soft clusters on a coarser grid, and every patch again for dense heads"
    paper = "arXiv 2210.01035"
    stages = ("encoder",)
    looks_at = "rows of one block"
    sees = "frame"

    schedules = {"grid": math.nan}

    grid: tuple[int, int] | None = None
    alpha: int | None = None
    iterations: int = 5
    window: int = 5
    temperature: float | None = None
    reconstruct: bool | None = None
    reconstruct_temperature: float | None = None
    k: int = 20
    norm: Literal["sum", "l2"] = "sum"
    naive: bool = False
    output_order: OutputOrder = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("norm", self.norm, ("sum", "l2"))
        whole("alpha", self.alpha, 1, " (blocks that run on all patches)", none=True)
        whole("iterations", self.iterations, 1)
        at_most("iterations", self.iterations, 1000, "by when clusters have settled")
        whole("window", self.window, 1, " and odd (cells along a side)")
        if self.window % 2 == 0:
            raise ValueError(
                f"window={self.window}; allowed: an odd int >= 1, such as 5, so that a patch is in the middle"
            )
        whole("k", self.k, -1, " (centres that a patch is made of), or -1 for all")
        if self.k == 0:
            raise ValueError("k=0 centres for a patch; allowed: an int >= 1, or -1 for all of them")
        for name in ("temperature", "reconstruct_temperature"):
            _positive(name, getattr(self, name))
        if self.grid is not None:
            if not isinstance(self.grid, tuple) or len(self.grid) != 2:
                raise ValueError(f"grid={self.grid!r}; allowed: (rows, columns) of the clusters, such as (16, 16)")
            for side in self.grid:
                whole("grid", side, 1, f" in each place, in grid={self.grid!r}")

    def is_identity(self, n: int) -> bool:
        return self.grid is None and super().is_identity(n)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        depth = facts.feature_block + 1
        alpha = max(1, depth // 2) if self.alpha is None else self.alpha
        at_most("alpha", alpha, depth, "the blocks up to the one whose output is used")
        if self.reconstruct and not facts.restores:
            raise ValueError(
                f"reconstruct=True, but the vision tower of a {facts.family} model hands on rows of several patches, joined; "
                "allowed: reconstruct=False, or None"
            )
        known = self.grid is not None or facts.tower_grid is not None
        rows = self.budget.count(math.prod(self.grid or facts.tower_grid or ()))  # a grid's budget is all of them
        restores = "projector" not in facts.stages if self.reconstruct is None else self.reconstruct
        amount = Target(rows, self.grid, restores) if known else None
        return (Step("encoder", layer=alpha - 1, when="after", amount=amount),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        x, p = tokens.features[:, tokens.prefix :].float(), tokens.prefix
        images: dict[Rectangle, list[int]] = {}
        for image, shape in enumerate(rectangles(tokens)):
            images.setdefault(shape, []).append(image)
        if all(sum(tokens.amount.cells(shape.size).across) == x.shape[1] for shape in images):
            return Reduction.identity(tokens, positions=self.policy)
        found = [self.clustered(x[uploaded(own, x.device)], shape, tokens.amount) for shape, own in images.items()]
        back = uploaded([image for own in images.values() for image in own], x.device).argsort()
        seats, label, share, again = (torch.cat(parts)[back] for parts in zip(*found))
        batch, n, m = len(x), x.shape[1], seats.shape[1]
        rows = torch.arange(p + max(n, m), device=x.device).expand(batch, -1)
        own = torch.zeros_like(share).scatter(2, seats[..., None], 1.0)
        restore = None
        if tokens.amount.restores:
            restore = torch.zeros(batch, p + n, p + m, device=x.device)
            restore[:, :p, :p] = torch.eye(p, device=x.device)
            restore[:, p:, p:] = again
        return Reduction(
            torch.cat([rows[:, :p], seats + p], dim=1),
            # a centre stands for the token that it sits at, whatever is nearest to that
            torch.cat([rows[:, :p], label.scatter(1, seats, rows[:, :m]) + p], dim=1),
            mix=Mix(rows[:, p : p + m], rows[:, p : p + n], share - own),
            restore=restore,
            covers=True,
            positions=self.policy,
        )

    def clustered(self, x: Tensor, shape: Rectangle, target: Target) -> Clustered:
        """Of tokens ``x`` (B, N, C) float32."""
        cells, order = target.cells(shape.size), uploaded(shape.order, x.device)
        back, x = order.argsort(), x[:, order]
        tau = neighbour_temperature(x, shape.size) if self.temperature is None else self.temperature
        share = soft_clusters(x, cells, self.iterations, tau, self.window)
        centres = share @ x
        label = nearest(x, centres)
        seats = order[cells.middles().to(x.device, non_blocking=True)].expand(len(x), -1)
        if self.naive or not target.restores:
            again = F.one_hot(label, centres.shape[1]).float()
        else:
            later = tau if self.reconstruct_temperature is None else self.reconstruct_temperature
            again = rebuilding(x, centres, later, self.k, self.norm)
        return Clustered(seats, label[:, back], share[:, :, back], again[:, back])


def _positive(argument: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < math.inf):
        raise ValueError(f"{argument}={value!r}; allowed: a number above 0, or None")
