"""DyCoke: the temporal part on one video, in the order and with the tail of the release; what five new tokens read."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.common import kept_mask, show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.dycoke import DyCoke, compared, similarity_of_rows
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """``merge_ratio_K`` is the share of a frame that is pruned: the release keeps ``int((1 - K) N)``, evaluated in double."""
    if "attn" in inputs:
        return decode(inputs["attn"], params)
    x = inputs["feat"]
    frames, n, _ = x.shape
    params.agree(frames=frames, tokens_per_frame=n)
    whole, back = compared(frames, "reference")
    keep = sum(whole) * n + sum(b > 0 for b in back) * int((1 - params["merge_ratio_K"]) * n)
    method = DyCoke(keep=keep, tail="reference", output_order="reference")
    plan = show(method, [], Layout(1, n, frames=frames, medium="video"), x.flatten(0, 1)[None])[1]
    return {"index": plan.source[0], "tokens": plan.carry(x.flatten(0, 1)[None])[0]}


def decode(attention: Tensor, params: Meta[Any]) -> dict[str, Tensor]:
    """``attention`` (S, H, L) of one new token after the other; step s sees L - S + 1 + s keys, those of text always.

    ``prune_ratio_P`` is the share that is not read: the release reads ``int((1 - P) V)`` of V, evaluated in double.
    """
    steps, _, longest = attention.shape
    start, n = params["start"], params["visual_tokens"]
    params.agree(steps=steps)
    count = int((1 - params["prune_ratio_P"]) * n)
    method = DyCoke(keep=1.0, cache_keep=count / n, threshold=params["threshold"], on_stable="full")
    notes: dict[str, Tensor] = {}
    found: dict[str, list[Tensor]] = {"keep_mask": [], "similarity": [], "length": []}
    for step, row in enumerate(attention.mean(dim=1)):
        length = longest - steps + 1 + step
        own = row[None, start : start + n]
        given = {"signals": {method.attended: own}, "notes": notes}
        tokens = VisualTokens(torch.empty(1, n, 0), Layout(1, n, medium="video"), stage="decode", layer=3, **given)
        plan = method.reduce(tokens).check(tokens)
        found["similarity"].append(similarity_of_rows(own, notes.get("attended"))[0])
        notes = dict(plan.notes)
        seen = torch.arange(longest) < length
        seen[start : start + n] = kept_mask(plan)[0]
        found["keep_mask"].append(seen)
        found["length"].append(torch.tensor(length))
    return {name: torch.stack(each) for name, each in found.items()}
