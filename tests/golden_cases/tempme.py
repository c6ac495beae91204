"""TempMe: one merge, two clips joined, a block with the weights of the vector, or what is left after each block."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from golden_cases.tome import shown, sizes
from golden_cases.vectors import Meta
from timm.layers import get_act_layer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokenreduce as tr
from tokenreduce.adapters.hooks.unit_rows import joined
from tokenreduce.methods.tempme import TempMe
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if "layers" in params:
        return schedule(inputs, params)
    if "qkv_weight" in inputs:
        return block(inputs, params)
    if "frames_per_clip" in params:
        return clip(inputs, params)
    return merged(inputs["x"], inputs["size"], params["r"], params["cls_num"], {Keys(0): inputs["metric"]})


def merged(x: Tensor, size: Tensor, r: int, prefix: int, signals: dict) -> dict[str, Tensor]:
    tokens = shown(x, prefix, size, r, signals)
    plan = TempMe().reduce(tokens).check(tokens)
    return {"x": plan.carry(x), "size": sizes(plan, tokens.size)[..., None]}


def clip(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    frames, prefix = params["frames_per_clip"], params["cls_num_in"]
    x, size = (joined(rows, frames, prefix) for rows in (inputs["x"], inputs["size"]))
    params.agree(cls_num_out=prefix * frames)
    return merged(x, size, params["r"], prefix * frames, {})


def block(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """timm's block, wrapped: a video of two frames, of which it joins all."""
    x, weights = inputs["x"], {name: inputs[name] for name in inputs if name != "x"}
    batch, n, width = x.shape
    params.agree(cls_num_in=1, frames_per_clip=batch)
    model = VisionTransformer(
        img_size=(n - 1, 1),
        patch_size=1,
        in_chans=width,
        embed_dim=width,
        depth=1,
        num_heads=params["heads"],
        mlp_ratio=weights["fc1_weight"].shape[0] / width,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=params["layernorm_eps"]),
        act_layer=get_act_layer(params["activation"]),
    ).eval()
    names = {"qkv": "attn.qkv", "proj": "attn.proj", "ln1": "norm1", "ln2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    model.blocks[0].load_state_dict({f"{names[k.split('_')[0]]}.{k.split('_')[1]}": v for k, v in weights.items()})
    model.norm = nn.Identity()
    plans: list[tuple[VisualTokens, Reduction]] = []

    class Watched(TempMe, register=False):
        def reduce(self, tokens: VisualTokens) -> Reduction:
            plans.append((tokens, super().reduce(tokens)))
            return plans[-1][1]

    model.blocks[0].register_forward_pre_hook(lambda module, args: (x,))
    method = Watched(blocks=(0,), joins=(batch,), proportional=params["prop_attn"])
    with tr.wrapped(model, method, output_length="reduced"), torch.no_grad():
        out = model.forward_features(torch.zeros(batch, width, n - 1, 1))
    params.agree(r_cross=plans[0][0].amount, r_intra=plans[1][0].amount)
    return {"x": out, "size": sizes(plans[1][1], plans[1][0].size)[..., None]}


def schedule(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    at, joins, depth = tuple(params["merge_layers"]), tuple(params["frames_merged"]), params["layers"]
    shares = {"cross": params["cross_pct"] / 100, "intra": params["intra_pct"] / 100}
    clips = int(inputs["frames"])
    method = TempMe(r=params["image_r"], blocks=at, joins=joins, frames=clips, **shares)
    found, heads = [], 1
    for number, merges in enumerate(method.counts(int(inputs["tokens_per_frame"]) - 1, 1, depth)):
        if number in at:
            clips, heads = clips // joins[at.index(number)], heads * joins[at.index(number)]
        found.append((clips, merges.left, heads))
    return dict(zip(("clips", "tokens_per_clip", "cls_per_clip"), torch.tensor(found).T))
