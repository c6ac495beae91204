"""EVS: keep what changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tokenreduce.layout import Layout
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.whole_frames import by_frame, places_of, similarity

#: more than any cosine distance
FIRST = 255.0


@dataclass(frozen=True, kw_only=True)
class EVS(Method):
    """Keep the K tokens of a video that differ most from the token at the same place one frame earlier, over all frames together.

    Attributes:
        keep: fraction of the T * N tokens of a video (the paper's 1 - q), or count per video. The first frame is always whole,
            so at least N are left.

    Source: "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", 2025, arXiv 2510.14624.
    Departures from the release: cosines are float32 whatever the dtype; a fraction is rounded to the nearest count.
    """

    name = "evs"
    title = "video: keep what changed"
    paper = "arXiv 2510.14624"
    media = ("video",)
    stages = ("projector",)
    looks_at = "change between frames"

    keep: float | int = 0.25

    def always_left(self, layout: Layout) -> int:
        return places_of(layout)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        x = by_frame(tokens, self.name)
        k = self.budget.count(tokens.num_tokens)
        last = tokens.notes.get("last")
        if last is None:
            k, change = max(k, x.shape[2]), F.pad(1 - similarity(x), (0, 0, 1, 0), value=FIRST)
        else:  # the frames before these are no longer there, but the last of them
            change = 1 - similarity(torch.cat([last[:, None], x], dim=1))
        return Reduction.top(change.flatten(1), k, positions=self.positions, notes={"last": x[:, -1]})
