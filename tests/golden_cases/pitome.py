"""PiToMe: one matching of either kind, the text variant, token counts, a stand-in tower, or a tiny ViT of timm, wrapped."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import torch
from golden_cases.common import FACTS
from golden_cases.tome import halves, outputs, prefix_rows, shown, sizes, timm_vit, wrapped
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.energy_merging import PRESETS, Merge, merges
from tokenreduce.kernels.energy_score import energy_score
from tokenreduce.matching import by_energy, match, match_energy, match_energy_bsm, match_text
from tokenreduce.methods.pitome import PiToMe
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Keys

VARIANTS = {"pitome": "energy", "pitome_bsm": "energy_bsm", "bsm": "bsm", "text": "text"}


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if "image" in inputs:
        return vit(inputs, params)
    if "w" in inputs:
        return tower(inputs, params)
    return one(inputs, params) if "metric" in inputs else counts(inputs, params)


def one(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, metric, ratio = inputs["x"], inputs["metric"], params["ratio"]
    prefix, margin, alpha = prefix_rows(params), params.get("margin", 0.5), params.get("alpha", 1.0)
    matching = params.one_of("variant", VARIANTS, "pitome")
    n = x.shape[1] - prefix
    r = merges(n, ratio, min(prefix, 1), matching)
    params.agree(r=r)
    if matching == "text":
        pairs = match_text(metric, r, margin, prefix)
        tokens = shown(x, prefix, inputs.get("size"), None)
        found = outputs(pairs.merge(prefix), x, tokens.size)
        energy = energy_score(metric[:, prefix:], margin, shape="gaussian")
        order = torch.cat([pairs.leaving, pairs.hubs, pairs.alone], dim=1)
    else:
        tokens = shown(x, prefix, inputs.get("size"), Merge(ratio, matching, margin), {Keys(0): metric})
        if ratio == 1:
            return outputs(Reduction.identity(tokens), x, tokens.size)
        method = PiToMe(rho=ratio, alpha=alpha)
        plan = method.reduce(tokens).check(tokens)
        pruned = dataclasses.replace(method, prune=True).reduce(tokens).check(tokens)
        found = outputs(plan, x, tokens.size) | {"x_prune": pruned.carry(x)}
        if r == 0:
            return found
        if matching == "bsm":
            return found | halves(match(metric, r, prefix), prefix)
        energy = energy_score(metric[:, prefix:], margin, alpha)
        order = by_energy(metric, margin, alpha, prefix)
        choose = match_energy if matching == "energy" else match_energy_bsm
        pairs = choose(metric, r, margin, alpha, prefix)
    a = order[:, 0::2] if matching == "energy_bsm" else pairs.leaving
    return found | {
        "a_idx": a - prefix,
        "b_idx": pairs.hubs - prefix,
        "protected_idx": pairs.alone - prefix,
        "dst_idx": place(pairs.joined, pairs.hubs),
        "src_idx": place(pairs.leaving, a),
        "unm_idx": place(pairs.alone, a) if matching == "energy_bsm" else pairs.alone,
        "energy": energy,
        "order": order - prefix,
    }


def place(wanted: Tensor, rows: Tensor) -> Tensor:
    """Where in ``rows`` (B, M) each of ``wanted`` (B, r) stands."""
    return (wanted[..., None] == rows[:, None]).int().argmax(dim=-1)


def counts(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    found = {}
    for i, row in enumerate(params["rows"]):
        for name, said in zip(("layers", "tokens", "ratio", "class_token"), row, strict=True):
            agrees = name not in inputs or math.isclose(inputs[name][i], said, rel_tol=1e-6)
            assert agrees, f"input {name} of row {i} contradicts the parameter rows"
    for output, matching in (("tokens_energy", "energy"), ("tokens_bsm", "bsm")):
        rows = []
        for depth, tokens, share, cls in params["rows"]:
            left = [tokens - cls]
            for _ in range(depth):
                left.append(left[-1] - merges(left[-1], share, int(cls), matching))
            rows.append(torch.tensor(left[1:]) + cls)
        found[output] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return found


def tower(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """Layers that are no model's: the method's steps, one after the other, merging after each layer.

    The vector's last layer merges, too, as the release does; the method itself stops at the block whose output is used.
    """
    x, weights = inputs["x"], inputs["w"]
    depth, prefix = len(weights), prefix_rows(params)
    params.agree(layers=depth)
    (scale,) = formula(params, "layer", r"h \+ (?:([\d.]+) ?\* ?)?tanh\(h @ w\[i\]\)")
    last_bsm, before_bsm = formula(params, "bsm_while", r"layer index (?:<= ?(\d+)|< ?(\d+))|never")
    first_energy = last_bsm + 1 if last_bsm is not None else before_bsm or 0
    m0, fall = formula(params, "margin", r"([\d.]+)(?: - ([\d.]+) ?\* ?i ?/ ?layers)?")
    weighted = params.one_of(
        "merge",
        {f"{kind} mean, whole layer output is metric and payload": kind != "plain" for kind in ("plain", "weighted")},
        "",
    )
    method = PiToMe(
        rho=params["ratio"],
        preset="llava",
        matching=["bsm" if layer < first_energy else "energy" for layer in range(depth)],
        m0=m0,
        fall=fall or 0.0,
        size_weighted=weighted,
        alpha=params.get("alpha", 1.0),
    )
    steps = {
        step.layer: step for step in method.plan(dataclasses.replace(FACTS, tower_depth=depth, feature_block=depth - 1))
    }
    size, states = torch.ones(x.shape[:2]), [x]
    for layer, w in enumerate(weights):
        x = x + (1.0 if scale is None else scale) * torch.tanh(x @ w)
        if layer in steps:
            step = steps[layer]
            assert (step.when, step.needs, step.proportional) == ("after", (), False)
            tokens = dataclasses.replace(shown(x, prefix, size, step.amount), layer=layer)
            plan = method.reduce(tokens).check(tokens)
            x, size = plan.carry(x), sizes(plan, size)
        states.append(x)
    return {
        "hidden_m2": states[-2],
        "hidden_last": states[-1],
        "tokens": torch.tensor([state.shape[1] for state in states]),
        "margin": torch.tensor([method.switches(FACTS).margin(layer, depth) for layer in range(depth)]),
    }


def formula(params: Meta[Any], name: str, pattern: str) -> list[float | None]:
    """The numbers of a rule that the vector gives in words; None for one that is not there."""
    found = re.fullmatch(pattern, params[name])
    if found is None:
        raise ValueError(f"parameter {name}={params[name]!r}; this driver honours: {pattern}")
    return [None if number is None else float(number) for number in found.groups()]


def vit(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """Margins and matchings as the vector lists them per block; what it leaves out is the preset's it names, or DeiT's."""
    model = timm_vit(inputs, params)
    depth = len(model.blocks)
    switches = ("metric", "when", "m0", "fall", "alpha", "size_weighted", "prop_attn")
    given = {name: params[name] for name in switches if name in params}
    if "margins" in params:
        margins = params["margins"]
        given |= {"m0": margins[0], "fall": (margins[0] - margins[-1]) * depth / max(depth - 1, 1)}
    if "use_bsm_pitome" in params:
        given["matching"] = ["energy_bsm" if plain else "energy" for plain in params["use_bsm_pitome"]]
    method = PiToMe(rho=params["ratio"], preset=params.one_of("preset", tuple(PRESETS), "deit"), **given)
    preset = method.switches(FACTS)
    margins = [preset.margin(block, depth) for block in range(depth)]
    if not torch.allclose(torch.tensor(params.get("margins", margins)), torch.tensor(margins)):
        raise ValueError(f"parameter margins={params['margins']!r}; this driver honours: margins on a line")
    found, _, metrics = wrapped(model, inputs["image"], method)
    energies = {
        f"energy{block}": energy_score(metric[:, model.num_prefix_tokens :], margins[block], method.alpha)
        for block, metric in metrics.items()
    }
    return found | energies
