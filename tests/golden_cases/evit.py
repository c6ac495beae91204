"""EViT: what one block selects, or a stack of blocks of timm with the weights of the vector."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from golden_cases.tome import shown
from golden_cases.vectors import Meta
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokenreduce as tr
from tokenreduce.methods.evit import Cut, EViT
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ClsAttention
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    return blocks(inputs, params) if "keep_rates" in params else one(inputs, params)


def one(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, rate, count = inputs["x"], params["keep_rate"], params["tokens"]
    attention = inputs["attn"].mean(dim=1)[:, 0]
    tokens = shown(x, 1, None, Cut(rate) if count is None else Cut(number=count), {ClsAttention(0): attention})
    method = EViT(keep_rate=rate, fuse_token=params["fuse_token"])
    plan = method.reduce(tokens).check(tokens)
    idx = indices(plan, method.fuse_token, 1)
    params.agree(kept=idx.shape[1])
    everything = torch.ones(len(x), x.shape[1] - 1, dtype=torch.bool).scatter(1, idx, False)
    return {"x": plan.carry(x), "idx": idx, "dropped": everything.nonzero()[:, 1].view(len(x), -1)}


def indices(plan: Reduction, fuses: bool, prefix: int) -> Tensor:
    """(B, kept) patches that stay, in the order of ``plan``."""
    return plan.source[:, prefix : plan.num_kept - fuses] - prefix


def blocks(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, rates, fuses = inputs["x"], params["keep_rates"], params["fuse_token"]
    weights = inputs.starting("sd.")
    batch, n, width = x.shape
    model = VisionTransformer(
        img_size=(n - 1, 1),
        patch_size=1,
        in_chans=width,
        embed_dim=width,
        depth=len(rates),
        num_heads=params["heads"],
        mlp_ratio=weights["0.mlp.fc1.weight"].shape[0] / width,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=params["layer_norm_eps"]),
    ).eval()
    model.blocks.load_state_dict(weights)
    model.norm = nn.Identity()
    plans: list[tuple[VisualTokens, Reduction]] = []
    found: dict[str, Tensor] = {}

    class Watched(EViT, register=False):
        def reduce(self, tokens: VisualTokens) -> Reduction:
            plans.append((tokens, super().reduce(tokens)))
            return plans[-1][1]

    model.blocks[0].register_forward_pre_hook(lambda module, args: (x,))
    with tr.wrapped(model, Watched(keep_rate=rates, fuse_token=fuses), output_length="reduced"), torch.no_grad():
        for i, block in enumerate(model.blocks):
            block.register_forward_hook(lambda module, args, output, i=i: found.update({f"x{i}": output}))
        model.forward_features(torch.zeros(batch, width, n - 1, 1))
    for step, (tokens, plan) in enumerate(plans):
        idx = indices(plan, fuses, 1)
        place = tokens.source.gather(1, idx + 1) - 1
        earlier = tokens.notes.get("fused")
        if earlier is not None:
            place = place.masked_fill(earlier.gather(1, place + 1), -1)
        found |= {f"idx{step}": idx, f"real{step}": place}
    return found
