"""PiToMe: one matching of either kind, the text variant, token counts, a stand-in tower, or a tiny ViT of timm, wrapped."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from golden_cases.common import FACTS
from golden_cases.tome import outputs, shown, timm_vit, wrapped
from torch import Tensor

from tokenreduce.energy_merging import Merge, merges
from tokenreduce.kernels.energy_score import energy_score
from tokenreduce.matching import by_energy, match, match_energy, match_energy_bsm, match_text
from tokenreduce.methods.pitome import PiToMe
from tokenreduce.signals import Keys

VARIANTS = {"pitome": "energy", "pitome_bsm": "energy_bsm", "bsm": "bsm"}


def run(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if "image" in inputs:
        return vit(inputs, params)
    if "w" in inputs:
        return tower(inputs, params)
    return one(inputs, params) if "metric" in inputs else counts(inputs, params)


def one(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    x, metric = inputs["x"], inputs["metric"]
    prefix, margin, alpha, variant = int(params["class_token"]), params["margin"], params["alpha"], params["variant"]
    if variant == "text":
        pairs = match_text(metric, params["r"], margin, prefix)
        found = outputs(pairs.merge(prefix), x, torch.ones(x.shape[:2]))
        energy = energy_score(metric[:, prefix:], margin, shape="gaussian")
        order = torch.cat([pairs.leaving, pairs.hubs, pairs.alone], dim=1)
    else:
        amount = Merge(params["ratio"], VARIANTS[variant], margin)
        tokens = shown(x, prefix, inputs.get("size"), amount, {Keys(0): metric})
        method = PiToMe(rho=params["ratio"], alpha=alpha)
        plan = method.reduce(tokens).check(tokens)
        pruned = dataclasses.replace(method, prune=True).reduce(tokens).check(tokens)
        found = outputs(plan, x, tokens.size) | {"x_prune": pruned.carry(x)}
        if variant == "bsm":
            pairs = match(metric, params["r"], prefix)
            cls = torch.zeros(len(x), prefix, dtype=torch.long)
            return found | {
                "src_idx": pairs.leaving // 2,
                "dst_idx": pairs.joined // 2,
                "unm_idx": torch.cat([cls, pairs.alone], dim=1) // 2,
            }
        energy = energy_score(metric[:, prefix:], margin, alpha)
        order = by_energy(metric, margin, alpha, prefix)
        choose = match_energy if variant == "pitome" else match_energy_bsm
        pairs = choose(metric, params["r"], margin, alpha, prefix)
    a = order[:, 0::2] if variant == "pitome_bsm" else pairs.leaving
    return found | {
        "a_idx": a - prefix,
        "b_idx": pairs.hubs - prefix,
        "protected_idx": pairs.alone - prefix,
        "dst_idx": place(pairs.joined, pairs.hubs),
        "src_idx": place(pairs.leaving, a),
        "unm_idx": place(pairs.alone, a) if variant == "pitome_bsm" else pairs.alone,
        "energy": energy,
        "order": order - prefix,
    }


def place(wanted: Tensor, rows: Tensor) -> Tensor:
    """Where in ``rows`` (B, M) each of ``wanted`` (B, r) stands."""
    return (wanted[..., None] == rows[:, None]).int().argmax(dim=-1)


def counts(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    found = {}
    for output, matching in (("tokens_energy", "energy"), ("tokens_bsm", "bsm")):
        rows = []
        for depth, tokens, share, cls in params["rows"]:
            left = [tokens - cls]
            for _ in range(depth):
                left.append(left[-1] - merges(left[-1], share, int(cls), matching))
            rows.append(torch.tensor(left[1:]) + cls)
        found[output] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return found


def tower(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """Layers that are no model's: the method's steps, one after the other, merging after each layer.

    The vector's last layer merges, too, as the release does; the method itself stops at the block whose output is used.
    """
    depth = params["layers"]
    matching = ["bsm" if layer <= 12 else "energy" for layer in range(depth)]
    method = PiToMe(rho=params["ratio"], preset="llava", matching=matching)
    facts = dataclasses.replace(FACTS, tower_depth=depth, feature_block=depth - 1)
    x, states = inputs["x"], [inputs["x"]]
    steps = method.plan(facts)
    for step, w in zip(steps, inputs["w"], strict=True):
        assert (step.when, step.needs, step.proportional) == ("after", (), False)
        x = x + 0.2 * torch.tanh(x @ w)
        tokens = dataclasses.replace(shown(x, int(params["class_token"]), None, step.amount), layer=step.layer)
        x = method.reduce(tokens).check(tokens).carry(x)
        states.append(x)
    return {
        "hidden_m2": states[-2],
        "hidden_last": states[-1],
        "tokens": torch.tensor([state.shape[1] for state in states]),
        "margin": torch.tensor([step.amount.margin for step in steps]),
    }


def vit(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    method = PiToMe(rho=params["ratio"], preset="deit", prop_attn=params["prop_attn"])
    steps = method.plan(dataclasses.replace(FACTS, tower_depth=params["depth"], feature_block=params["depth"] - 1))
    assert [step.amount.margin for step in steps] == params["margins"]
    assert [step.amount.matching == "energy_bsm" for step in steps] == params["use_bsm_pitome"]
    found, _, metrics = wrapped(timm_vit(inputs, params), inputs["image"], method)
    energies = {
        f"energy{block}": energy_score(metric[:, 1:], margin)
        for block, (metric, margin) in enumerate(zip(metrics, params["margins"], strict=True))
    }
    return found | energies
