"""DyCoke: of four neighbouring frames one stays whole, the others keep the places that differ from it; new tokens read a part."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels.top_k import top_k
from tokenreduce.layout import Layout
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import LastQueryAttention
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded
from tokenreduce.validation import choice, in_range, whole
from tokenreduce.whole_frames import by_frame, lowest_per_frame, places_of, similarity

Tail = Literal["all", "reference"]


@dataclass(frozen=True, kw_only=True)
class DyCoke(Method):
    """In every pair of frames the second keeps the places that resemble the first least, and so does, in every four frames, the
    third beside the first. Nothing is averaged, whatever the name of the step. While an answer is written, later layers read
    only what the new token attends to most of all that is left; it is chosen anew when that attention turns elsewhere.

    Attributes:
        keep: fraction in [0.25, 1] of the T * N tokens of a video, or count per video: 1 - 0.75 K of the paper's K. Frames that
            stay whole are left in any case: one of every four, and what has no partner at the end.
        tail: ``all`` groups of four are reduced, and a frame without a partner stays; or ``reference``, the released loop, which
            leaves the third frame of the last group whole and loses an odd last frame.
        output_order: ``raster``, or the ``reference`` order, in a frame by rising similarity, ids renumbered.
        cache_keep: fraction in (0, 1] of what is left of a video that a new token reads, 1 - P of the paper (0.3); 1: all of
            it, the temporal part alone.
        layer: decoder layer (0-based, >= 1) from which on it reads that part; the layer before tells what it attends to.
        threshold: cosine of what two tokens in a row attend to, from which on the second chooses nothing new.
        on_stable: it then may ``reuse`` what was chosen last, or read the ``full`` video, as the release does.

    Source: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", CVPR 2025,
        arXiv 2411.15024.
    Departures from the release: raster order and kept ids; exact counts, the first of the pruned frames one token more where they
        cannot be alike; any number of frames. What was attended to is forgotten with the answer, of each row by itself. A stable
        token reuses what was chosen. The pruning while decoding is off unless asked for.
    """

    name = "dycoke"
    title = "video: one whole frame in four"
    paper = "arXiv 2411.15024"
    media = ("video",)
    stages = ("projector", "decode")
    looks_at = "change between frames"

    keep: float | int = 0.475
    tail: Tail = "all"
    output_order: Literal["raster", "reference"] = "raster"
    cache_keep: float = 1.0
    layer: int = 3
    threshold: float = 0.9
    on_stable: Literal["reuse", "full"] = "reuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("tail", self.tail, ("all", "reference"))
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("on_stable", self.on_stable, ("reuse", "full"))
        whole("layer", self.layer, 1, ", 3 in the paper: the layer before it tells what a new token attends to")
        in_range("threshold", self.threshold, -1, 1)
        in_range("cache_keep", self.cache_keep, 0, 1)
        if self.cache_keep == 0:
            raise ValueError("cache_keep=0, of which nothing is read; allowed: a fraction in (0, 1], 0.3 in the paper")
        if isinstance(self.keep, float) and self.keep < 0.25:
            raise ValueError(
                f"keep={self.keep:g}, but one frame in four stays whole; allowed: 0.25 to 1. For less give another method, such "
                "as evs or vidcom2, or several: tr.wrap(model, tr.DyCoke(keep=0.25), tr.FastV(keep=0.1))"
            )

    def always_left(self, layout: Layout) -> int:
        return sum(compared(layout.frames, self.tail)[0]) * places_of(layout)

    def is_identity(self, n: int) -> bool:
        return self.cache_keep == 1 and super().is_identity(n)

    @property
    def attended(self) -> LastQueryAttention:
        return LastQueryAttention(self.layer - 1)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        reading = Step("decode", layer=self.layer, needs=(self.attended,))
        return (Step("projector"), *([reading] if self.cache_keep < 1 else []))

    def reduce(self, tokens: VisualTokens) -> Reduction:
        if tokens.stage == "decode":
            return self._read(tokens)
        if self.budget.is_full:
            return Reduction.identity(tokens)
        x = by_frame(tokens, self.name)
        n = x.shape[2]
        whole, partner = compared(x.shape[1], self.tail)
        score = resemblance(x, partner)
        count = counts(whole, partner, n, self.budget.count(tokens.num_tokens))
        kept, k = lowest_per_frame(score, count.to(x.device, non_blocking=True)), int(count.sum())
        given = {"score": -score.flatten(1), "positions": self.policy}
        plan = Reduction.select(top_k(kept.flatten(1).float(), k), tokens.num_tokens, **given)
        if self.output_order == "raster":
            return plan
        frame = plan.source // n
        # by rising similarity within a frame, and in raster order where it stays whole
        order = score.flatten(1).gather(1, plan.source).sort(dim=1, stable=True).indices
        order = order.gather(1, frame.gather(1, order).sort(dim=1, stable=True).indices)
        return plan.reordered(plan.source.gather(1, order))

    def _read(self, tokens: VisualTokens) -> Reduction:
        """What a new token reads of the N entries of a video."""
        row, n = tokens.signal(self.attended), tokens.num_tokens
        k = floor(self.cache_keep * n + 1e-9)
        rows = torch.arange(len(row), device=row.device)[:, None]
        read = torch.zeros_like(row, dtype=torch.bool).index_put_((rows, top_k(row, k)), torch.tensor(True))
        stable = similarity_of_rows(row, tokens.notes.get("attended")) >= self.threshold
        noted = {"attended": row, "read": read}
        if self.on_stable == "full":
            return Reduction.where(read | stable[:, None], score=row, notes=noted)
        if "read" in tokens.notes:
            read = noted["read"] = torch.where(stable[:, None], tokens.notes["read"], read)
        return Reduction.select(top_k(read.float(), k), n, score=row, notes=noted)


def similarity_of_rows(row: Tensor, before: Tensor | None) -> Tensor:
    """(B,) cosine of what a token attends to, ``row`` (B, N), with what the one before it did; 0 for the first of an answer."""
    return row.new_zeros(len(row)) if before is None else F.cosine_similarity(row.float(), before.float(), dim=1)


def compared(frames: int, tail: Tail) -> tuple[list[bool], list[int]]:
    """Of ``frames`` frames, which stay whole, and how many frames back the one is that others are compared with, 0 where none.

    A frame that neither stays whole nor is compared is lost.
    """
    groups = frames // 4 - (tail == "reference" and frames % 4 == 0)
    back = [1 if t % 2 else 2 if t % 4 == 2 and t // 4 < groups else 0 for t in range(frames)]
    lost = tail == "reference" and frames % 2 == 1 < frames
    return [b == 0 and not (lost and t == frames - 1) for t, b in enumerate(back)], back


def resemblance(x: Tensor, back: list[int]) -> Tensor:
    """(B, T, N) cosine of every place of ``x`` (B, T, N, D) with the frame ``back`` before; -2 where nothing is compared."""
    frames = x.shape[1]
    near = F.pad(similarity(x), (0, 0, 1, 0), value=-2.0)
    far = F.pad(similarity(x[:, ::2]), (0, 0, 1, 0), value=-2.0).repeat_interleave(2, dim=1)[:, :frames]
    step = uploaded(back, x.device)[:, None]
    return torch.where(step == 1, near, torch.where(step == 2, far, -2.0))


def counts(whole: list[bool], back: list[int], n: int, k: int) -> Tensor:
    """(T,) how many of its ``n`` tokens each frame keeps, ``k`` in all or as many as whole frames hold; the first ones more."""
    pruned = [t for t, b in enumerate(back) if b]
    left = min(max(k - n * sum(whole), 0), n * len(pruned))
    found = torch.tensor([n * stays for stays in whole])
    if pruned:
        share, rest = divmod(left, len(pruned))
        found[pruned] = share + (torch.arange(len(pruned)) < rest).long()
    return found
