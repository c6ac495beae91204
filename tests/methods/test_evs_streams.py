"""EVS on a video that goes on: the first frame of a window is compared with the last one of the window before."""

from __future__ import annotations

import torch

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.tokens import VisualTokens


def test_windows_rank_as_the_whole_video_does():
    torch.manual_seed(0)
    video, n, window = torch.randn(12, 6, 8), 6, 4
    still = torch.rand(12, 6) < 0.5
    for t in range(1, 12):
        video[t] = torch.where(still[t, :, None], video[t - 1] + 0.1 * video[t], video[t])
    change = 1 - torch.cosine_similarity(video[1:], video[:-1], dim=-1)
    notes: dict = {}
    for start in range(0, 12, window):
        tokens = VisualTokens(
            video[start : start + window].flatten(0, 1)[None], Layout(2, 3, frames=window), notes=notes
        )
        plan = tr.EVS(keep=0.5).reduce(tokens)
        notes = plan.notes
        score = change[max(start - 1, 0) : start + window - 1].flatten()
        first = n if start == 0 else 0
        kept = torch.cat([torch.arange(first), score.topk(12 - first).indices + first]).sort().values
        assert plan.source[0].tolist() == kept.tolist()
