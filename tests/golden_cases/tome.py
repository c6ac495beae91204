"""ToMe: one matching, a chain of merges, schedules, or a tiny ViT of timm, wrapped.

The second half serves PiToMe's vectors, too, which have the same outputs.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import timm
import torch
from golden_cases.vectors import Meta
from torch import Tensor

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.matching import Pairs, match, unmerge
from tokenreduce.method import Method
from tokenreduce.methods.tome import ToMe
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import schedule
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if "image" in inputs:
        return vit(inputs, params)
    if "w0" in inputs:
        return chain(inputs, params)
    return one(inputs, params) if "metric" in inputs else schedules(inputs, params)


def one(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """The vector counts inside A (even places) and B (odd places)."""
    x, metric, prefix, r = inputs["x"], inputs["metric"], prefix_rows(params), params["r_requested"]
    tokens = shown(x, prefix, inputs.get("size"), r, {Keys(0): metric})
    plan = ToMe(r=r).reduce(tokens).check(tokens)
    merged = outputs(plan, x, tokens.size)
    r = x.shape[1] - plan.num_kept
    params.agree(r_effective=r)
    merged["unmerge"] = unmerge(merged["x"], plan.assign)
    return merged | halves(match(metric, r, prefix), prefix) if r else merged


def chain(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, prefix, found = inputs["x"], prefix_rows(params), {}
    batch, n, _ = x.shape
    size = inputs["size"].flatten(1) if "size" in inputs else torch.ones(batch, n)
    assign = torch.arange(n).expand(batch, n)
    for step, r in enumerate(params["r"]):
        tokens = shown(x, prefix, size, r, {Keys(0): x @ inputs[f"w{step}"]})
        plan = ToMe(r=r).reduce(tokens).check(tokens)
        x, size, assign = plan.carry(x), sizes(plan, size), plan.assign.gather(1, assign)
        found[f"x{step}"] = x
    return found | {"size": size[..., None], "assign": assign, "source": membership(assign, x.shape[1])}


def schedules(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """Rows (depth, r, inflection): a pair, or, where the inflection is missing, r as it stands."""
    rows = []
    for i, (depth, r, *more) in enumerate(params["rows"]):
        inflection = more[0] if more else None
        rows.append(torch.tensor(schedule(r if inflection is None else (r, inflection), depth)))
        for name, said in (("layers", depth), ("r", r), ("inflect", inflection)):
            assert name not in inputs or inputs[name][i] == said, (
                f"input {name} of row {i} contradicts the parameter rows"
            )
    return {"r": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)}


def vit(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    model = timm_vit(inputs, params)
    patches = model.patch_embed.num_patches
    method = ToMe(r=per_block(params, len(model.blocks), patches), proportional=params.get("prop_attn", True))
    with torch.no_grad():
        base = model.forward_features(inputs["image"])
    found, plans, metrics = wrapped(model, inputs["image"], method)
    prefix = model.num_prefix_tokens
    for block, plan in plans.items():
        pairs = halves(match(metrics[block], plan.assign.shape[1] - plan.num_kept, prefix), prefix)
        found |= {f"src_idx{block}": pairs["src_idx"], f"dst_idx{block}": pairs["dst_idx"]}
    return found | {"base": base}


def per_block(params: Meta[Any], depth: int, patches: int) -> Any:
    """``r`` as the method takes it. JSON has no tuples: which of two numbers are a pair is told by ``r_per_block``, or else
    by the inflection being no count of tokens."""
    asked = params.get("r", params.get("r_per_block"))
    readings = [asked]
    if isinstance(asked, list) and len(asked) == 2:
        readings = [tuple(asked), asked] if isinstance(asked[1], float) or asked[1] < 0 else [asked, tuple(asked)]
    said = params.get("r_per_block")
    for reading in readings:
        try:
            counts = schedule(reading, depth)
        except (TypeError, ValueError):
            continue
        done, left = [], patches
        for r in counts:
            done.append(min(r, left // 2))
            left -= done[-1]
        if said is None or said + [0] * (depth - len(said)) in (counts, done):
            return reading
    raise ValueError(f"parameter r={asked!r} of {depth} blocks does not lead to r_per_block={said!r}")


# ------------------------------------------------------------------ places in the halves of a matching


def prefix_rows(params: Meta[Any]) -> int:
    cls, distill = (params.one_of(name, (True, False), False) for name in ("class_token", "distill_token"))
    if distill and not cls:
        raise ValueError("parameter distill_token=True without class_token; a distillation token is row 1")
    return params.get("num_prefix_tokens", cls + distill)


def place_in_half(place: Tensor, prefix: int) -> Tensor:
    """[CLS] and distillation token count as A[0] and B[0]; more prefix rows belong to neither half."""
    return (place - (prefix if prefix > 2 else 0)) // 2


def halves(pairs: Pairs, prefix: int) -> dict[str, Tensor]:
    cls = torch.arange(1 if 0 < prefix < 3 else 0).expand(len(pairs.alone), -1)
    return {
        "unm_idx": torch.cat([cls, place_in_half(pairs.alone, prefix)], dim=1),
        "src_idx": place_in_half(pairs.leaving, prefix),
        "dst_idx": place_in_half(pairs.joined, prefix),
        "score": pairs.score,
    }


# ------------------------------------------------------------------ what the vectors of merging methods share


def shown(x: Tensor, prefix: int, size: Tensor | None, amount: Any, signals: dict | None = None) -> VisualTokens:
    """What block 0 of a tower shows a method."""
    return VisualTokens(
        features=x,
        layout=Layout(1, x.shape[1] - prefix),
        stage="encoder",
        layer=0,
        size=None if size is None else size.flatten(1),
        signals=signals or {},
        prefix=prefix,
        amount=amount,
    )


def sizes(plan: Reduction, size: Tensor) -> Tensor:
    return torch.zeros(plan.source.shape).scatter_add_(1, plan.assign, size)


def membership(assign: Tensor, k: int) -> Tensor:
    """(B, K, N) float, 1 where row k stands for token n."""
    return torch.nn.functional.one_hot(assign, k).mT.float()


def outputs(plan: Reduction, x: Tensor, size: Tensor) -> dict[str, Tensor]:
    """Rows as weighted and as plain means, sizes, and who is where, of a plan that merges."""
    return {
        "x": dataclasses.replace(plan, weight=size).carry(x),
        "x_mean": dataclasses.replace(plan, weight=None).carry(x),
        "size": sizes(plan, size)[..., None],
        "source": membership(plan.assign, plan.num_kept),
        "assign": plan.assign,
    }


def timm_vit(inputs: Meta[Tensor], params: Meta[Any]) -> torch.nn.Module:
    """timm's own VisionTransformer, with every argument of it that the vector names, and the weights of the vector."""
    ours = timm.models.VisionTransformer
    kind = timm.models.deit.VisionTransformerDistilled if params.get("distill_token") else ours
    names = [name for name in inspect.signature(ours).parameters if name in params]
    weights = inputs.starting("sd.")
    headless = {} if "head.weight" in weights else {"num_classes": 0}
    model = kind(**headless | {name: params[name] for name in names})
    model.load_state_dict(weights)
    return model.eval()


def wrapped(
    model: torch.nn.Module, image: Tensor, method: Method
) -> tuple[dict[str, Tensor], dict[int, Reduction], dict[int, Tensor]]:
    """Outputs of the wrapped ``model`` and, by merging block, the plan and the metric the method saw."""
    plans: dict[int, Reduction] = {}
    metrics: dict[int, Tensor] = {}

    class Watched(type(method), register=False):  # type: ignore[misc]
        def reduce(self, tokens: VisualTokens) -> Reduction:
            plans[tokens.layer] = super().reduce(tokens)
            metrics[tokens.layer] = next(iter(tokens.signals.values()), tokens.features)
            return plans[tokens.layer]

    given = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    with tr.wrapped(model, Watched(**given), output_length="reduced"), torch.no_grad():
        tokens = model.forward_features(image)
    n = model.num_prefix_tokens + model.patch_embed.num_patches
    size, assign = torch.ones(len(image), n), torch.arange(n).expand(len(image), -1)
    for plan in plans.values():
        size, assign = sizes(plan, size), plan.assign.gather(1, assign)
    return {"tokens": tokens, "size": size[..., None], "source": membership(assign, size.shape[1])}, plans, metrics
