"""GTP: its graph, its ranks, one propagation, or a tiny ViT of timm, block by block and, where no map is sparsified, wrapped.

Sparsified attention is not offered by the library: here it is made of whole maps, as the vectors of it are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from golden_cases.common import FACTS, query_and_key
from golden_cases.tome import shown, timm_vit
from golden_cases.vectors import Meta
from torch import Tensor

import tokenreduce as tr
from tokenreduce.block_signals import AttentionMap, BlockInput
from tokenreduce.kernels.attention_map import attention_map
from tokenreduce.layout import Layout
from tokenreduce.methods.gtp import GRAPHS, GTP
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if "image" in inputs:
        return vit(inputs, params)
    if "tokens" in inputs:
        return graphs(inputs, params)
    if "kept" in inputs:
        return propagation(inputs, params)
    return selections(inputs, params) if "strategies" in params else sparsity(inputs, params)


def graphs(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, prefix, grid = inputs["tokens"], int(params["class_token"]), Layout(*params["grid"])
    tokens = dataclasses.replace(shown(x, prefix, None, 0, {BlockInput(0): x}), layout=grid, cell=None)
    neighbours = params["num_neighbours"]
    return {f"graph_{kind}": GTP(graph_type=kind, num_neighbours=neighbours).graph(tokens) for kind in GRAPHS}


def selections(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    attention, prefix = inputs["attn"], int(params["class_token"])
    leaving, found = params["num_prop"], {}
    for name in params["strategies"]:
        method = GTP(num_prop=leaving, selection=name, propagation="None")
        tokens = shown(torch.zeros(*attention.shape[:1], attention.shape[-1], 1), prefix, None, leaving)
        tokens.signals = statistics(method, attention, prefix)
        found |= halves(method, tokens, leaving, name)
    return found


def statistics(method: GTP, attention: Tensor, prefix: int) -> dict[AttentionMap, Tensor]:
    """What the method asks for in block 0, through the library's kernel, of rows that sum to 1."""
    query, key = query_and_key(attention)
    needs = method.plan(FACTS)[0].needs
    patch = (torch.arange(attention.shape[-1]) >= prefix).expand(len(attention), -1)
    return {
        n: attention_map(query, key, 1.0, n.of, heads=n.heads, query_mask=patch if n.of == "likeness" else None)
        for n in needs
        if isinstance(n, AttentionMap)
    }


def of_maps(method: GTP, attention: Tensor) -> dict[AttentionMap, Tensor]:
    """The same of rows that do not."""
    each = {"cls": attention[:, :, 0], "received": attention.sum(2), "diagonal": attention.diagonal(dim1=2, dim2=3)}
    needs = [need for need in method.plan(FACTS)[0].needs if isinstance(need, AttentionMap)]
    return {n: each[n.of].mean(1) if n.heads == "mean" else each[n.of].amax(1) for n in needs}


def halves(method: GTP, tokens: VisualTokens, leaving: int, name: str) -> dict[str, Tensor]:
    prefix = tokens.prefix
    order = method.rank(tokens)[:, prefix:].sort(dim=1, descending=True, stable=True).indices + prefix
    plan = method.reduce(tokens).check(tokens)
    kept = plan.source[:, prefix:]
    assert torch.equal(kept, order[:, : kept.shape[1]])
    return {f"kept_{name}": kept, f"prop_{name}": order[:, order.shape[1] - leaving :]}


def propagation(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, kept, gone, graph = inputs["x"], inputs["kept"], inputs["prop"], inputs["graph"]
    prefix = int(params["class_token"])
    params.agree(num_prop=gone.shape[1])
    method = GTP(num_prop=gone.shape[1], alpha=params["alpha"], propagation=params["propagation"])
    scale = inputs["scale"] if "scale" in inputs else torch.ones(x.shape[:2])
    tokens = shown(x, prefix, None, gone.shape[1])
    assert kept.shape[1] + prefix + gone.shape[1] == x.shape[1]
    plan = method.propagated(tokens, kept - prefix, gone - prefix, {"graph": graph, "scale": scale[:, prefix:]})
    plan.check(tokens)
    here = kept - prefix
    left = graph.gather(1, here[..., None].expand(-1, -1, graph.shape[2])).gather(
        2, here[:, None].expand(-1, here.shape[1], -1)
    )
    weighs = torch.cat([scale[:, :prefix], plan.counts[:, prefix:]], dim=1)
    return {"x": plan.carry(x), "graph": left, "scale": weighs}


def sparsified(attention: Tensor, share: float) -> Tensor:
    """``attention`` (B, H, N, N) with the smallest entries of each head at zero, down to the ``share`` that stays."""
    k = int(attention.shape[-1] ** 2 * (1 - share))
    if k < 1:
        return attention
    least = attention.flatten(2).kthvalue(k, dim=2).values[..., None, None]
    return attention.masked_fill(attention < least, 0)


def sparsity(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    attention, share = inputs["attn"], params["sparsity"]
    params.agree(kth=int(attention.shape[-1] ** 2 * (1 - share)))
    return {"attn": sparsified(attention, share)}


def vit(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    model = timm_vit(inputs, params)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = params["final_norm_eps" if module is model.norm else "block_norm_eps"]
    names = ("num_prop", "selection", "propagation", "graph_type", "num_neighbours", "alpha", "token_scale")
    method = GTP(**{name: params[name] for name in names})
    found, share = by_block(model, inputs["image"], method, params["sparsity"]), params["sparsity"]
    if share == 1:
        with tr.wrapped(model, method, output_length="reduced"), torch.no_grad():
            tokens = model.forward_features(inputs["image"])
        torch.testing.assert_close(tokens, found["tokens"], atol=1e-4, rtol=1e-4)
        found["tokens"] = tokens
    return found


@torch.no_grad()
def by_block(model: torch.nn.Module, image: Tensor, method: GTP, share: float) -> dict[str, Tensor]:
    """The blocks of ``model`` by hand, with whole maps."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(image)))
    prefix, batch, found = model.num_prefix_tokens, len(x), {}
    source, notes, counts = torch.arange(x.shape[1]).expand(batch, -1), {}, torch.ones(x.shape[:2])
    first, layout = x, Layout(*model.patch_embed.grid_size)
    for i, block in enumerate(model.blocks):
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * attn.scale + counts.log()[:, None, None]).softmax(-1)
        weights = sparsified(weights, share) if share < 1 else weights
        x = x + attn.proj((weights @ v).transpose(1, 2).flatten(2))
        tokens = dataclasses.replace(shown(x, prefix, None, method.num_prop), layout=layout)
        tokens.source, tokens.notes, tokens.cell = source, notes, source - prefix
        tokens.signals = {**of_maps(method, weights), BlockInput(0): first}
        own = halves(method, tokens, method.num_prop, str(i))
        found |= {f"kept{i}": own[f"kept_{i}"], f"prop{i}": own[f"prop_{i}"]}
        plan = method.reduce(tokens)
        x, source, notes = plan.carry(x), source.gather(1, plan.source), plan.notes
        counts = counts.gather(1, plan.source) if plan.counts is None else plan.counts
        x = x + block.mlp(block.norm2(x))
        if i == 0 and "graph" in notes:
            found["graph0"] = notes["graph"]
    at, images = source[:, prefix:] - prefix, torch.arange(batch)[:, None, None]
    if "graph" in notes:
        found["graph_last"] = notes["graph"][images, at[:, :, None], at[:, None]]
    return found | {"tokens": model.norm(x), "scale": counts}
