"""DyCoke: the temporal part on one video, in the order and with the tail of the release."""

from __future__ import annotations

from typing import Any

from golden_cases.common import show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.dycoke import DyCoke, compared


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """``merge_ratio_K`` is the share of a frame that is pruned: the release keeps ``int((1 - K) N)``, evaluated in double."""
    x = inputs["feat"]
    frames, n, _ = x.shape
    params.agree(frames=frames, tokens_per_frame=n)
    whole, back = compared(frames, "reference")
    keep = sum(whole) * n + sum(b > 0 for b in back) * int((1 - params["merge_ratio_K"]) * n)
    method = DyCoke(keep=keep, tail="reference", output_order="reference")
    plan = show(method, [], Layout(1, n, frames=frames, medium="video"), x.flatten(0, 1)[None])[1]
    return {"index": plan.source[0], "tokens": plan.carry(x.flatten(0, 1)[None])[0]}
