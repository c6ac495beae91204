"""B-VLLM's operators: a frame that repeats an earlier one joins it, and the frames that are left share a fixed total."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import row_blocks, unit_rows
from tokenreduce.layout import Layout
from tokenreduce.matching import halvings, in_rounds, match, ordered
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded
from tokenreduce.validation import choice, in_range
from tokenreduce.whole_frames import by_frame, stacked


@dataclass(frozen=True, kw_only=True)
class BVLLM(Method):
    """Average a frame into the earlier one whose mean token is most like its own, where that is like enough; then merge, in each
    of the frames that are left, alike tokens in rounds until all together are as many as asked for.

    Attributes:
        keep: fraction of the T * N tokens of a video, or count per video; fewer where the frames that are left hold no more.
        theta: similarity (cosine + 1) / 2 in [0, 1] above which a frame joins an earlier one. Where more frames are left than
            tokens are asked for, the most similar ones join, too.
        chain: a frame whose own frame joins another goes to the ``root`` of the chain, or is lost, as in the ``release``.
        sizes: weigh tokens that were merged before by what they stand for; the release takes means of means.
        output_order: in a frame, ``raster`` order, or the ``reference`` order of the rounds, ids renumbered.

    Source: Lu et al., "B-VLLM: A Vision Large Language Model with Balanced Spatio-Temporal Tokens", 2024, arXiv 2412.09919: the
        two operators without parameters; the selector of frames and the Q-formers are trained.
    Departures: frames are described by their mean token; see the page.
    """

    name = "b_vllm"
    title = "video: join frames that repeat"
    paper = "arXiv 2412.09919"
    media = ("video",)
    stages = ("projector",)
    looks_at = "mean tokens of frames, cosines of tokens in a frame"

    keep: float | int = 0.25
    theta: float = 0.75
    chain: Literal["root", "release"] = "root"
    sizes: bool = False
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("theta", self.theta, 0.0, 1.0)
        choice("chain", self.chain, ("root", "release"))
        choice("output_order", self.output_order, ("raster", "reference"))

    def reduce(self, tokens: VisualTokens) -> Reduction:
        k = self.budget.count(tokens.num_tokens)
        return stacked([self.video(x, k) for x in by_frame(tokens, self.name)], positions=self.policy)

    def video(self, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row (T * N,), source (K,) and weight (T * N,) of the tokens of a video ``x`` (T, N, D), at most ``k`` of them left."""
        n = x.shape[1]
        slot, left = self.slots(x.detach().float().mean(dim=1), k)
        members = torch.bincount(slot[slot >= 0], minlength=len(left))
        means = group_mean(x.flatten(1)[None], slot[None], len(left))[0].view(len(left), n, -1)
        share, more = divmod(min(k, len(left) * n), len(left))
        stands = members[:, None].expand(-1, n).float()
        parts = ((slice(more), share + 1), (slice(more, None), share))  # the first frames keep one token more
        plans = [self.merged(means[own], stands[own], count) for own, count in parts if len(left[own])]
        size = uploaded([plan.num_kept for plan in plans for _ in plan.source], x.device)
        source = torch.cat([plan.source.flatten() for plan in plans]) + (left * n).repeat_interleave(size)
        row = torch.cat([plan.assign for plan in plans]) + (size.cumsum(dim=0) - size)[:, None]
        weight = torch.cat([plan.weight for plan in plans if plan.weight is not None])
        assign = torch.where((slot >= 0)[:, None], row[slot], -1)
        return assign.flatten(), source, (weight / members[:, None])[slot].flatten()

    def merged(self, x: Tensor, size: Tensor, k: int) -> Reduction:
        """The plan that leaves ``k`` tokens of each of the frames ``x`` (F, N, D), whose tokens stand for ``size`` (F, N)."""
        tokens = VisualTokens(x, Layout(1, x.shape[1]), size=size)
        rounds = in_rounds(tokens, halvings(x.shape[1], k), lambda f, r, _: match(f, r), weighted=self.sizes)
        return ordered(rounds, self.output_order)

    def slots(self, descriptor: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """(T,) which of the frames that are left each frame is part of, -1: lost; and these frames (F,), ``most`` or fewer."""
        target = duplicates(descriptor, self.theta, most)
        kept = target < 0
        number = torch.where(kept, kept.cumsum(dim=0) - 1, -1)
        index = torch.arange(len(target), device=target.device)
        at = torch.where(kept, index, target)
        for _ in range(len(target).bit_length() if self.chain == "root" else 0):
            at = at[at]
        return number[at], kept.nonzero().flatten()


def duplicates(descriptor: Tensor, theta: float, most: int | None = None) -> Tensor:
    """(T,) the earlier frame that each of the frames of ``descriptor`` (T, C) joins, -1: it stays. At most ``most`` stay."""
    unit = unit_rows(descriptor[None])[0]
    count = len(unit)
    best, at = unit.new_full((count,), -1.0), torch.full((count,), -1, device=unit.device)
    index = torch.arange(count, device=unit.device)
    for rows in row_blocks(count, count):
        alike = (unit[rows] @ unit.T + 1) / 2
        best[rows], at[rows] = alike.masked_fill(index >= index[rows, None], -1.0).max(dim=1)
    leaves = best > theta
    if most is not None:  # the most similar ones, of equal ones the later; the first has nothing before it
        rank = best.flip(0).sort(descending=True, stable=True).indices.argsort().flip(0)
        leaves |= rank < count - most
    leaves[0] = False
    return torch.where(leaves, at, -1)
