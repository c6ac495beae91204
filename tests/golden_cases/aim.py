"""AIM: rounds of merging, the walk along given logits, and a whole decoder whose tokens are hidden instead of dropped."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from golden_cases import llama
from golden_cases.common import FACTS, make, visual_span
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.adapters.attention_functions import Probe
from tokenreduce.kernels.attention_walk import attention_walk
from tokenreduce.layout import Layout
from tokenreduce.matching import in_rounds, match
from tokenreduce.methods.aim import AIM
from tokenreduce.tokens import VisualTokens

LOWEST = -1e30  # of a logit: finite, so that it times zero is zero


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    served = {"importance": importance, "merge": merge, "tiny_qwen2": qwen2}
    return params.one_of("function", served, "tiny_qwen2")(inputs, params)


def importance(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    params.one_of("damping", (0.0,), 0.0)
    logits = inputs["logits"].float().clamp_min(LOWEST)
    key = torch.eye(logits.shape[-1]).expand(len(logits), 1, -1, -1)
    walk = {"steps": params["iterations"], "temperature": params["tau"], "causal": True}
    return {"importance": attention_walk(logits, key, 1.0, **walk)}


def merge(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, counts = inputs["x"], params["r_list"]
    tokens = VisualTokens(features=x, layout=Layout(1, x.shape[1]))
    plans = [
        in_rounds(tokens, counts[: i + 1], lambda x, r, _: match(x, r), weighted=False) for i in range(len(counts))
    ]
    return {f"merged_{i}": plan.carry(x) for i, plan in enumerate(plans)}


@torch.no_grad()
def qwen2(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """What the method decides, carried out as the release does: a dropped token stays and is seen by nobody from then on.

    So the walk also starts from hidden tokens, and along their rows.
    """
    params.one_of("mode", ("mask",), "mask")
    embeds, follow = inputs["embeds"], inputs["next_embed"]
    depth, length = len(inputs["w_q"]), embeds.shape[1]
    if len(embeds) != 1:
        raise ValueError(f"input embeds has {len(embeds)} samples; this driver honours one")
    image = visual_span(params, length)
    n = image.stop - image.start
    method = make(AIM, params, keep=None, start=params["l1"])
    facts = dataclasses.replace(FACTS, decoder_depth=depth, tokens_per_image=None)
    steps = {step.layer: step for step in method.plan(facts) if step.stage == "llm"}
    decoder = llama.build(inputs, params, torch.cat([embeds[0], follow[0]]), length, n, "qwen2").get_decoder()

    visible = torch.ones(depth + 1, length, dtype=torch.bool)
    hidden = embeds
    for i in range(depth):
        hidden, heard = one_layer(decoder, i, hidden, visible[i])
        visible[i + 1] = visible[i]
        if i + 1 not in steps:
            continue
        step, columns = steps[i + 1], visible[i, image].nonzero()[:, 0]
        (walk,) = step.needs
        query, key, scale = heard
        score = attention_walk(
            query, key, scale, steps=walk.steps, temperature=walk.temperature, visible=visible[i][None], causal=True
        )
        tokens = VisualTokens(
            features=hidden[:, image][:, columns],
            layout=Layout(1, n),
            stage="llm",
            layer=i + 1,
            source=columns[None],
            signals={walk: score[:, image][:, columns]},
            entered=n,
            amount=step.amount,
        )
        visible[i + 1, image] = False
        visible[i + 1, columns[method.reduce(tokens).source[0]] + image.start] = True
    longer = torch.cat([embeds, follow], dim=1)
    for i in range(depth):
        longer, _ = one_layer(decoder, i, longer, torch.cat([visible[i], torch.ones(1, dtype=torch.bool)]))
    return {"visible": visible, "hidden": decoder.norm(hidden), "decode_hidden": decoder.norm(longer[:, -1:])}


def one_layer(decoder: Any, index: int, hidden: Tensor, visible: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, float]]:
    """``hidden`` (1, L, C) after layer ``index``, whose keys are the columns ``visible`` (L,); its q, k and scale."""
    length, heard = hidden.shape[1], []
    seen = torch.ones(length, length, dtype=torch.bool).tril() & visible
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    attention = decoder.layers[index].self_attn
    probe = Probe(attention, lambda module, query, key, mask, scale, cuts: heard.append((query, key, scale)))
    try:
        table = decoder.rotary_emb(hidden, torch.arange(length)[None])
        hidden = decoder.layers[index](hidden, attention_mask=mask, position_embeddings=table)
    finally:
        probe.remove()
    return hidden, heard[0]
