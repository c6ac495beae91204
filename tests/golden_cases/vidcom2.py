"""VidCom2: one video as frames of a grid; the kept places, by the rounding of each frame or an exact total."""

from __future__ import annotations

from typing import Any

from golden_cases.common import show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.vidcom2 import VidCom2, filled, frame_shares, similarities


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, share = inputs["frames"], params["retention"]
    t, h, w, _ = x.shape
    to_video, to_frame = similarities(x.flatten(1, 2)[None])
    score, scales = to_video + to_frame, frame_shares(to_video, share)
    exact = params.get("exact_total", False)
    plan = show(VidCom2(keep=share, exact=False), [], Layout(h, w, frames=t, medium="video"), x.flatten(0, 2)[None])[1]
    kept = plan.source
    if exact:  # the serving variant truncates the total, the method rounds it
        k = max(t, min(int(t * h * w * share), t * h * w))
        kept = filled(plan.assign >= 0, score.flatten(1), k).sort(dim=1).values
    return {"keep_indices": kept[0], "score": score[0], "scales": scales[0]}
