"""VidCom2: frames unlike the video keep more tokens, and of each frame the unusual ones stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.kernels.rows import EPSILON, row_blocks
from tokenreduce.layout import Layout
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.whole_frames import by_frame, lowest_per_frame

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
TEMPERATURE = 0.01


@dataclass(frozen=True, kw_only=True)
class VidCom2(Method):
    """Score every token by its Gaussian similarity to the centre of the video and of its frame, in the channels that vary least;
    frames far from the centre of the video may keep more; the least similar tokens of each frame are kept.

    Attributes:
        keep: fraction R of the T * N tokens of a video, or count per video.
        exact: fill the budget exactly, at least one token a frame in all, by the scores of the whole video where rounding
            leaves some over; False keeps what each frame's rounding gives, as released, at least one of every frame.

    Source: Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
        EMNLP 2025, arXiv 2505.14454.
    Departures from the release: everything is computed in float32; of equal variances and scores the lowest index wins; row
        newlines stay in their places; a fraction is rounded to the nearest count.
    """

    name = "vidcom2"
    title = "video: unusual tokens of unusual frames"
    paper = "arXiv 2505.14454"
    media = ("video",)
    stages = ("projector",)
    looks_at = "distance from the centres of video and frame"

    keep: float | int = 0.25
    exact: bool = True

    def always_left(self, layout: Layout) -> int:
        return layout.frames

    def most(self, n: int) -> int:
        return super().most(n) if self.exact else n  # rounding as released can keep a little more

    def reduce(self, tokens: VisualTokens) -> Reduction:
        x = by_frame(tokens, self.name)
        n, whole = x.shape[2], tokens.num_tokens
        k = max(self.budget.count(whole), x.shape[1])
        share = self.keep if isinstance(self.keep, float) else k / whole
        to_video, to_frame = similarities(x)
        score = to_video + to_frame
        kept = lowest_per_frame(score, torch.round(frame_shares(to_video, share) * n).clamp_min(1))
        given = {"score": -score.flatten(1), "positions": self.positions}
        if not self.exact:
            return Reduction.where(kept.flatten(1), **given)
        return Reduction.select(filled(kept.flatten(1), score.flatten(1), k), whole, **given)


def similarities(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the tokens ``x`` (B, T, N, D), (B, T, N) float32 each: similarity to the centre of the video, and of the frame.

    In the D // 2 channels of lowest variance over the video, tokens at length 1; centres are means.
    """
    x = x.detach()
    variance = x.float().var(dim=(1, 2), correction=0)
    channels = variance.sort(dim=1, stable=True).indices[:, : x.shape[3] // 2].sort(dim=1).values
    y = torch.stack([one.index_select(2, own) for one, own in zip(x, channels)]).float()
    y = y / torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min_(EPSILON)
    frame = y.mean(dim=2, keepdim=True)
    return gaussian(y, frame.mean(dim=1, keepdim=True).expand_as(frame)), gaussian(y, frame)


def gaussian(y: Tensor, centre: Tensor) -> Tensor:
    """(B, T, N) of ``y`` (B, T, N, C): sum of exp(-d^2 / 2 a) over all widths a, d the distance to ``centre`` (B, T, 1, C)."""
    square = torch.cat(
        [(y[:, own] - centre[:, own]).square().sum(dim=-1) for own in row_blocks(y.shape[1], y[:, 0].numel(), least=1)],
        dim=1,
    )
    return torch.stack([(-square / (2 * a)).exp() for a in WIDTHS]).sum(dim=0)


def frame_shares(to_video: Tensor, share: float) -> Tensor:
    """(B, T) share in (0, 1] of its tokens that each frame keeps; ``to_video`` (B, T, N) as above, ``share`` on average."""
    away = -to_video.mean(dim=2)
    p = ((away - away.amax(dim=1, keepdim=True)) / TEMPERATURE).softmax(dim=1)
    return (share * (1 + p - p.mean(dim=1, keepdim=True))).clamp_max(1)


def filled(kept: Tensor, score: Tensor, k: int) -> Tensor:
    """(B, k) tokens: of the ``kept`` (B, N) those of lowest ``score`` (B, N), then of the others; ties: the lowest index."""
    by_score = score.sort(dim=1, stable=True).indices
    first = (~kept).gather(1, by_score).to(torch.uint8).argsort(dim=1, stable=True)
    return by_score.gather(1, first[:, :k])
