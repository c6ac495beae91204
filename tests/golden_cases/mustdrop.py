"""MustDrop: window merging, the key set, the filter of one layer, of four, and a whole tiny Llama in a wrapped LLaVA."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from golden_cases.common import FACTS, query_and_key, visual_span
from golden_cases.llama import build
from golden_cases.vectors import Meta
from torch import Tensor

import tokenreduce as tr
from tokenreduce.adapters import registry
from tokenreduce.adapters.families.llava import Llava
from tokenreduce.groups import Image, ImageGroup, group_images
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.window_similarity import window_similarity
from tokenreduce.layout import Layout
from tokenreduce.method import Step
from tokenreduce.methods.mustdrop import KEY, ROLES, MustDrop
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ClsAttention
from tokenreduce.text_attention import attended, key_set
from tokenreduce.tokens import VisualTokens

POSITIONS = {"compact": "renumber", "renumber": "renumber", "original": "keep", "keep": "keep"}
#: whether the cache is trimmed to what survives
CACHES = {"final_survivors_from_first_pruning_layer": True, "full": False, "none": False}


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if "x" in inputs:
        params.one_of("function", ("spatial_merge",), "spatial_merge")
        return windows(inputs["x"], params)
    if "hidden_after_block0" in inputs:
        params.one_of("function", ("encoder_stage",), "encoder_stage")
        return encoder(inputs, params)
    served = {"dual_attention_filter": one_filter, "prefill_plan": prefill, "tiny_llama": llama}
    kind = "dual_attention_filter" if "attn" in inputs else "tiny_llama" if "embeds" in inputs else "prefill_plan"
    return params.one_of("function", served, kind)(inputs, params)


# ------------------------------------------------------------------ encoder


def merged(x: Tensor, params: Meta[Any], prefix: int) -> tuple[VisualTokens, Reduction, int]:
    """The plan for the output ``x`` (B, P + N, C) of block 0, and the side of a window."""
    side = math.isqrt(x.shape[1] - prefix)
    height, width = params.get("grid_h", side), params.get("grid_w", side)
    window, across = params["window"]
    if window != across:
        raise ValueError(f"parameter window={[window, across]}; this driver honours: square windows")
    method = MustDrop(
        keep=192,
        mode="threshold",
        window=window,
        similarity=params["threshold"],
        batch_min=params.get("batch_min", True),
        score="cls" if prefix else "global_mean",
        output_order="reference",
    )
    facts = dataclasses.replace(FACTS, tower_grid=(height, width), tower_prefix=prefix, has_cls=prefix > 0)
    (step,) = [step for step in method.plan(facts) if step.stage == "encoder"]
    assert step.when == "after"
    params.agree(merge_after_block=step.layer)
    tokens = VisualTokens(x, Layout(height, width), step.stage, step.layer, prefix=prefix, amount=step.amount)
    return tokens, method.reduce(tokens).check(tokens), window


def windows(x: Tensor, params: Meta[Any]) -> dict[str, Tensor]:
    prefix = int(params.one_of("cls_token", (True, False), True))
    tokens, plan, window = merged(x, params, prefix)
    size = (plan.assign[:, :, None] == torch.arange(plan.num_kept)).sum(dim=1)
    return {
        "merged": plan.carry(x),
        "size": size[..., None].float(),
        "assign": plan.assign,
        "num_merged_windows": (size[0] > 1).sum(),
        "window_similarity": window_similarity(x[:, prefix:], tokens.layout.height, tokens.layout.width, window),
    }


def encoder(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, depth = inputs["hidden_after_block0"], params["key_block"] + 1
    facts = dataclasses.replace(FACTS, tower_depth=depth, feature_block=range(depth)[params["select_layer"]])
    method = MustDrop(keep=192, mode="threshold", key_rate=params["key_rate"])
    query, key = query_and_key(inputs["cls_attn_last_block"][:, :, None])
    score = attention_row(query, key, 1.0)[:, 0, 1:]
    (step,) = [step for step in method.plan(facts) if step.stage == "projector"]
    assert step.needs == (ClsAttention(params["key_block"]),)
    before, plan, _ = merged(x, params, prefix=1)
    tokens = VisualTokens(inputs["features"][:, 1:], before.layout, signals={step.needs[0]: score}, amount=step.amount)
    keys = method.reduce(tokens).check(tokens)
    assert keys.role is not None
    return {
        "merged_after_block0": plan.carry(x),
        "key_set": key_set(score, method.key_rate),
        "key_set_sorted": torch.stack([(row == KEY).nonzero().flatten() for row in keys.role]),
        "projector_input": keys.carry(tokens.features),
    }


# ------------------------------------------------------------------ language model


@dataclass(frozen=True, kw_only=True)
class GivenKeys(MustDrop, register=False):
    """MustDrop from the projector on, with the keys of a vector."""

    merge: bool = False
    keys: tuple[int, ...] = ()

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return tuple(dataclasses.replace(s, needs=()) if s.stage == "projector" else s for s in super().plan(facts))

    def reduce(self, tokens: VisualTokens) -> Reduction:
        if tokens.stage != "projector":
            return super().reduce(tokens)
        role = torch.zeros_like(tokens.role)
        role[:, list(self.keys)] = KEY
        return Reduction.identity(tokens, role=role, role_names=ROLES, positions=self.positions)


def given(inputs: Meta[Tensor], params: Meta[Any]) -> GivenKeys:
    layers = params.get("pruning_layers")
    return GivenKeys(
        keep=1 / 3,
        mode="threshold",
        positions=params.one_of("position_policy", POSITIONS, "compact"),
        layers=None if layers is None else tuple(layers),
        trim_cache=params.one_of("cache_policy", CACHES, "final_survivors_from_first_pruning_layer"),
        global_threshold=params["global_thr"],
        individual_threshold=params["individual_thr"],
        keys=tuple(inputs["key_set"].tolist()),
    )


def start(method: GivenKeys, system: int, n: int) -> ImageGroup:
    """One image of ``n`` tokens after ``system`` text tokens, its keys named."""
    (group,) = group_images([Image(0, torch.arange(n) + system, Layout(1, n))], torch.device("cpu"))
    tokens = VisualTokens(torch.zeros(1, n, 1), group.layout)
    (group,) = group.apply(method.reduce(tokens), "projector", None, method.name)
    return group


def filtered(
    method: GivenKeys, group: ImageGroup, attention: Tensor, system: int, layer: int, facts: ModelFacts = FACTS
) -> ImageGroup:
    """``group`` after pruning layer ``layer``, whose maps over the sequence that entered it are (1, H, T, T)."""
    n = group.num_tokens
    query, key = query_and_key(attention)
    rows = attention_row(query[:, :, system + n :], key, 1.0)[..., system : system + n]
    (step,) = [s for s in method.plan(facts) if (s.stage, s.layer) == ("llm", layer + 1)]
    tokens = VisualTokens(
        torch.zeros(1, n, 1),
        group.layout,
        step.stage,
        step.layer,
        source=group.source,
        size=group.size,
        role=group.role,
        signals=dict(zip(step.needs, (rows.sum(dim=1), rows.amax(dim=1)))),
        amount=step.amount,
    )
    (after,) = group.apply(method.reduce(tokens).check(tokens), step.stage, step.layer, method.name)
    return after


def one_filter(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    attention, image = inputs["attn"], visual_span(params, inputs["attn"].shape[-1])
    system, n = image.start, image.stop - image.start
    method = given(inputs, params)
    layer = method.pruning_layers(FACTS.decoder_depth)[0]
    after = filtered(method, start(method, system, n), attention, system, layer)
    query, key = query_and_key(attention)
    rows = attention_row(query[:, :, system + n :], key, 1.0)[..., system : system + n]
    kept = attended(rows.sum(dim=1), rows.amax(dim=1), params["global_thr"], params["individual_thr"])
    return {
        "important": kept[0].nonzero().flatten(),
        "keep": after.source[0],
        "new_key_set": (after.role[0] == KEY).nonzero().flatten(),
        "keep_sequence": sequence(after, system, n, attention.shape[-1]),
    }


def sequence(group: ImageGroup, system: int, n: int, length: int) -> Tensor:
    """Columns of the tokens that are left."""
    return torch.cat([torch.arange(system), group.seats[0], torch.arange(system + n, length)])


def prefill(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    system, n, depth = params["system_len"], params["image_len"], params["num_layers"]
    length = system + n + params["text_len"]
    method, facts = given(inputs, params), dataclasses.replace(FACTS, decoder_depth=depth)
    group = start(method, system, n)
    tokens = {0: sequence(group, system, n, length)}
    for stage, layer in enumerate(method.pruning_layers(depth)):
        group = filtered(method, group, inputs[f"attn_stage{stage}"], system, layer, facts)
        tokens[layer + 1] = sequence(group, system, n, length)
    (trimmed,) = [step.layer for step in method.plan(facts) if step.stage == "cache"] or [depth]
    entering = [tokens[max(first for first in tokens if first <= layer)] for layer in range(depth)]
    cached = [entering[-1] if layer >= trimmed else row for layer, row in enumerate(entering)]
    compact = method.positions == "renumber"
    return {
        "token_ids": padded(entering, length),
        "position_ids": padded([torch.arange(len(row)) if compact else row for row in entering], length),
        "cache_ids": padded(cached, length),
        "final_ids": entering[-1],
        # the released rule; this library goes on from the length that entered the layer
        "decode_position": torch.tensor([len(row) if compact else length for row in cached]),
    }


def padded(rows: list[Tensor], length: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, length - len(row)), value=-1) for row in rows])


def llama(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """The Llama given by its weights as the language model of a LLaVA, wrapped, through prefill and one decode step."""
    embeds, follow = inputs["embeds"], inputs["next_embed"]
    _, length, _ = embeds.shape
    image, marker = visual_span(params, length), length
    system, n = image.start, image.stop - image.start
    ids = torch.arange(length)[None].clone()
    ids[:, image] = marker
    table = torch.cat([embeds[0], torch.full_like(embeds[0, :1], 7.0), follow[0]])
    model = build(inputs, params, table, marker, n)
    model.model.get_image_features = lambda **_: SimpleNamespace(pooler_output=[embeds[0, image]])

    registry.families()  # all are registered before the table is changed for a while
    with mock.patch.dict(registry._FAMILIES):

        class OneImage(Llava):
            """An image of just as many tokens as the vector has: the first cells of the tower's grid."""

            model_types = ("llava",)

            @property
            def cells(self) -> list[int]:
                return super().cells[:n]

        method = given(inputs, params)
        last_pruning = method.pruning_layers(len(inputs["w_q"]))[-1]
        decoded = {}
        for legacy in (False, True):
            with tr.wrapped(model, dataclasses.replace(method, legacy_decode_ids=legacy)), torch.no_grad():
                prefill = model.model(input_ids=ids, pixel_values=torch.zeros(1, 3, 1, 1), use_cache=True)
                cache = prefill.past_key_values
                cached = [layer.keys.shape[2] for layer in cache.layers]
                visual = tr.trace(model).kept_at[last_pruning + 1][0]
                entered = [n_l[0] + length - n for n_l in tr.report(model).tokens_at_layer]
                last = torch.tensor([[marker + 1]])
                decoded[legacy] = model.model(input_ids=last, past_key_values=cache, use_cache=True).last_hidden_state
    kept = torch.cat([torch.arange(system), visual, torch.arange(system + n, length)])
    full = prefill.last_hidden_state
    return {
        "hidden": full[:, kept],
        "final_ids": kept,
        "cache_len": torch.tensor(cached),
        "prefill_len": torch.tensor(entered),
        "decode_position": torch.tensor(cached),
        "decode_hidden": decoded[True],
        "decode_hidden_consistent": decoded[False],
    }
