"""B-VLLM: frames that repeat an earlier one by given descriptors, and rounds of merging inside frames."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.methods.b_vllm import BVLLM, duplicates

#: of the release: tokens in all, and of a slot before
TOTAL, PER_SLOT = 576, 32


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if params.one_of("function", ("dedup", "spatial"), "dedup") == "spatial":
        x, k = inputs["tokens"], params["target"]
        plan = BVLLM(output_order="reference").merged(x, torch.ones(x.shape[:2]), min(k, x.shape[1]))
        return {"tokens": plan.carry(x)}
    method = BVLLM(theta=params["threshold"], chain=params.get("chain", "release"))
    target = duplicates(inputs["selector"], method.theta)
    slot, kept = method.slots(inputs["selector"], len(target))
    x = inputs["frames"]
    frames = group_mean(x.flatten(1)[None], slot[None], len(kept))[0].view(len(kept), *x.shape[1:])
    share = int(max(1, TOTAL // PER_SLOT / len(kept) * PER_SLOT))
    return {"kept": kept, "target": target, "frames": frames, "tokens_per_frame": torch.tensor(share)}
