"""DyMU: merging above a threshold, one image or a batch, thresholds found on a batch, their running mean, schedules, unmerging.

The release's path for batches divides by size + 1e-4 and leaves rows of padding; both are made here of the library's exact rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from golden_cases.tome import place_in_half, prefix_rows, shown
from golden_cases.vectors import Meta
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tokenreduce.adapters.attention_functions import Probe
from tokenreduce.adapters.hooks.decoder_layers import KEY
from tokenreduce.adapters.hooks.unmerged_rows import UnmergedRows
from tokenreduce.adapters.hooks.unmerging_layers import UnmergingLayer
from tokenreduce.groups import Image as Placed
from tokenreduce.groups import group_images
from tokenreduce.layout import Layout
from tokenreduce.methods.dymu import DyMU
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import STAIRCASES, staircase
from tokenreduce.signals import Keys
from tokenreduce.threshold_merging import above, candidates
from tokenreduce.threshold_search import RunningMean, ThresholdSearch


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if "batch_threshold" in inputs:
        return running(inputs)
    if "r_total" in inputs:
        return schedules(inputs, params)
    if "steps" in params:
        return batch(inputs, params)
    if "metric" in inputs:
        return one(inputs, params)
    return unmerged(inputs, params)


def running(inputs: Meta[Tensor]) -> dict[str, Tensor]:
    rows = []
    for given in inputs["batch_threshold"]:
        mean, row = RunningMean(), torch.full_like(given, -1)
        for i, new in enumerate(given[given >= 0].tolist()):
            mean.add(new)
            row[i] = mean.value
        rows.append(row)
    return {"running": torch.stack(rows)}


def schedules(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    kinds = params.get("kinds", list(STAIRCASES))
    rows = [
        (int(depth), int(total), kinds[kind])
        for depth, total, kind in zip(inputs["layers"], inputs["r_total"], inputs["kind"])
    ]
    params.agree(rows=[list(row) for row in rows])
    made = [torch.tensor(staircase(total, depth, kind)) for depth, total, kind in rows]
    return {"r": pad_sequence(made, batch_first=True, padding_value=-1)}


def one(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, metric, prefix, threshold = inputs["x"], inputs["metric"], prefix_rows(params), params["threshold"]
    method = DyMU(calibration=[threshold], max_r=params.get("max_r_per_instance"))
    tokens = shown(x, prefix, inputs.get("size"), float(threshold), {Keys(0): metric})
    plan = whole(method.reduce(tokens).check(tokens))
    found = candidates(metric, prefix)
    r = x.shape[1] - plan.num_kept
    params.agree(r_effective=r, pairs_over_threshold=int(above(found.score, threshold)))
    return {
        "x": plan.carry(x),
        "size": summed(plan, tokens.size[..., None]),
        "pos": summed(plan, inputs.get("pos", torch.eye(x.shape[1])[None])),
        "src_idx": place_in_half(found.leaving[:, :r], prefix),
        "dst_idx": place_in_half(found.joined[:, :r], prefix),
    }


def whole(plan: Reduction) -> Reduction:
    """The plan of one image without the mask that says that all of its rows are there."""
    return plan.rows(slice(None), plan.num_kept)


def summed(plan: Reduction, x: Tensor) -> Tensor:
    """(B, K, C) sums of ``x`` (B, N, C) over the tokens of each row."""
    into = torch.zeros(len(x), plan.num_kept, x.shape[2])
    return into.scatter_add_(1, plan.assign[..., None].expand_as(x), x)


def unmerged(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """Attention of a Llama whose queries, keys and values are channels of its hidden states, hooked as a decoder layer is."""
    before, after, pos = params["text_before"], params["text_after"], inputs["pos"]
    q, k, v = (inputs[name].transpose(1, 2).flatten(2) for name in ("q", "k", "v"))
    (heads, _, channels), width, (merged, n) = inputs["q"].shape[1:], q.shape[2], pos.shape
    params.agree(scaling=channels**-0.5, causal=True, rope_layout="half split (rotate_half)")
    tables = inputs["cos"][None], inputs["sin"][None]
    turned = params["rope_theta"] ** -(torch.arange(0, channels, 2) / channels)
    assert torch.allclose(inputs["sin"][1, : channels // 2], turned.sin(), atol=1e-6)

    length, columns = before + n + after, torch.arange(before, before + n)
    (image,) = group_images([Placed(0, columns, Layout(1, n))], columns.device)
    sits = pos.argmax(dim=1)  # any of the places of a row
    order = sits.argsort()
    plan = Reduction(source=sits[order][None], assign=order.argsort()[pos.argmax(dim=0)][None])
    rows = UnmergedRows.of(image.apply(plan, "encoder", 0, "dymu"), torch.ones(1, length, dtype=torch.bool))
    given = torch.cat([torch.arange(before), before + order, torch.arange(before + merged, before + merged + after)])

    config = LlamaConfig(hidden_size=3 * width, num_attention_heads=heads, head_dim=channels, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    layer = LlamaDecoderLayer(config, 0)
    layer.input_layernorm = layer.post_attention_layernorm = layer.mlp = torch.nn.Identity()
    attention, parts = layer.self_attn, torch.eye(3 * width).split(width)
    for own, part in zip((attention.q_proj, attention.k_proj, attention.v_proj), parts):
        own.weight.data = part
    attention.o_proj.weight.data = parts[0].T
    handles: list[Any] = []
    heard: dict[str, Tensor] = {}
    UnmergingLayer(layer).attach(handles)
    handles.append(Probe(attention, lambda module, q, k, mask, scale, cuts: heard.update(scores=q @ k.mT * scale)))
    handles.append(attention.register_forward_hook(lambda module, args, output: heard.update(out=output[0])))
    hidden = rows.spread(torch.cat([q, k, v], dim=2)[:, given])
    layer(hidden, position_embeddings=tables, **{KEY: SimpleNamespace(unmerged=rows)})
    for handle in handles:
        handle.remove()
    found = rows.narrow(heard["out"][..., :width])[:, given.argsort()]
    return {
        "mapping": given[rows.row[0]],
        "scores": heard["scores"],
        "attn": found.unflatten(2, (heads, channels)).transpose(1, 2),
    }


@dataclass
class Image:
    """One of a batch: rows x (1, n, D), their sizes (1, n, 1), and the original tokens of each, (1, n, N)."""

    x: Tensor
    size: Tensor
    pos: Tensor


def batch(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    prefix, most, x = prefix_rows(params), params.get("max_r_per_instance"), inputs["x"]
    size = inputs.get("size", torch.ones(*x.shape[:2], 1))
    pos = inputs.get("pos", torch.eye(x.shape[1]).expand(len(x), -1, -1))
    images = [Image(*own) for own in zip(x.split(1), size.split(1), pos.split(1), strict=True)]
    found: dict[str, Tensor] = {}
    for i, step in enumerate(params["steps"]):
        amount, metrics = step.get("threshold", 99), [own.x @ inputs[f"w{i}"] for own in images]
        tokens = [shown(own.x, prefix, own.size, amount, {Keys(0): m}) for own, m in zip(images, metrics, strict=True)]
        if step["kind"] == "find":
            search = Told(keep=1.0, max_r=most, r=step["r"])
            plans = search.checked_together(tokens)
            found[f"threshold{i}"] = torch.tensor(search.found.means[0].value, dtype=torch.float32)
        elif step["kind"] == "thr":
            method = DyMU(calibration=[step["threshold"]], max_r=most, path="batch")
            plans = [method.reduce(own).check(own) for own in tokens]
        else:
            raise ValueError(f"step {step!r}; this driver honours: find, thr")
        images = [after(own, whole(plan)) for own, plan in zip(images, plans, strict=True)]
        rows = {name: [getattr(own, name)[0] for own in images] for name in ("x", "size", "pos")}
        found |= {f"{name}{i}": pad_sequence(own, batch_first=True) for name, own in rows.items()}
        count = torch.tensor([len(own) for own in rows["x"]])
        found |= {f"count{i}": count, f"padding{i}": torch.arange(int(count.max())) >= count[:, None]}
    return found


@dataclass(frozen=True, kw_only=True)
class Told(ThresholdSearch, register=False):
    """A search told how many tokens of an image merge on average."""

    r: int = 0

    def merges(self, n: int, depth: int, block: int) -> int:
        return self.r


def after(image: Image, plan: Reduction) -> Image:
    """``image`` once ``plan`` was carried out, with means as the release makes them."""
    size = summed(plan, image.size)
    weighted = summed(plan, image.x * image.size)
    return Image(weighted / (size + 1e-4), size, summed(plan, image.pos))
