"""ToMe: one matching, a chain of merges, schedules, or a tiny ViT of timm, wrapped.

The second half serves PiToMe's vectors, too, which have the same outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import timm
import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.matching import match, unmerge
from tokenreduce.method import Method
from tokenreduce.methods.tome import ToMe
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import schedule
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens


def run(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if "image" in inputs:
        return vit(inputs, params)
    if "w0" in inputs:
        return chain(inputs, params)
    return one(inputs, params) if "metric" in inputs else schedules(inputs, params)


def one(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """The vector counts inside A (even places) and B (odd places), prefix rows included."""
    prefix = params["class_token"] + params["distill_token"]
    tokens = shown(inputs["x"], prefix, inputs.get("size"), params["r_requested"], {Keys(0): inputs["metric"]})
    plan = ToMe(r=params["r_requested"]).reduce(tokens).check(tokens)
    pairs = match(inputs["metric"], params["r_effective"], prefix)
    merged = outputs(plan, inputs["x"], tokens.size)
    even = torch.arange(0, prefix, 2).expand(len(pairs.alone), -1)
    return merged | {
        "unm_idx": torch.cat([even, pairs.alone], dim=1) // 2,
        "src_idx": pairs.leaving // 2,
        "dst_idx": pairs.joined // 2,
        "score": pairs.score,
        "unmerge": unmerge(merged["x"], plan.assign),
    }


def chain(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    x, found = inputs["x"], {}
    batch, n, _ = x.shape
    size, assign = torch.ones(batch, n), torch.arange(n).expand(batch, n)
    for step, r in enumerate(params["r"]):
        prefix = params["class_token"] + params["distill_token"]
        tokens = shown(x, prefix, size, r, {Keys(0): x @ inputs[f"w{step}"]})
        plan = ToMe(r=r).reduce(tokens).check(tokens)
        x, size, assign = plan.carry(x), sizes(plan, size), plan.assign.gather(1, assign)
        found[f"x{step}"] = x
    return found | {"size": size[..., None], "assign": assign, "source": membership(assign, x.shape[1])}


def schedules(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    rows = [torch.tensor(schedule((r, f), depth)) for depth, r, f in params["rows"]]
    return {"r": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)}


def vit(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    method = ToMe(r=tuple(params["r"]), proportional=params["prop_attn"])
    model = timm_vit(inputs, params)
    with torch.no_grad():
        base = model.forward_features(inputs["image"])
    found, plans, metrics = wrapped(model, inputs["image"], method)
    for block, (plan, metric) in enumerate(zip(plans, metrics)):
        pairs = match(metric, plan.assign.shape[1] - plan.num_kept, prefix=1)
        found |= {f"src_idx{block}": pairs.leaving // 2, f"dst_idx{block}": pairs.joined // 2}
    return found | {"base": base}


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


def timm_vit(inputs: dict[str, Tensor], params: dict[str, Any]) -> torch.nn.Module:
    """timm's own VisionTransformer with the weights of the vector."""
    names = (
        "img_size",
        "patch_size",
        "embed_dim",
        "depth",
        "num_heads",
        "mlp_ratio",
        "num_classes",
        "fc_norm",
        "global_pool",
    )
    model = timm.models.VisionTransformer(**{name: params[name] for name in names})
    model.load_state_dict({name[3:]: value for name, value in inputs.items() if name.startswith("sd.")})
    return model.eval()


def wrapped(
    model: torch.nn.Module, image: Tensor, method: Method
) -> tuple[dict[str, Tensor], list[Reduction], list[Tensor]]:
    """Outputs of the wrapped ``model`` and, per merging block, the plan and the metric the method saw."""
    plans: list[Reduction] = []
    metrics: list[Tensor] = []

    class Watched(type(method), register=False):  # type: ignore[misc]
        def reduce(self, tokens: VisualTokens) -> Reduction:
            plans.append(super().reduce(tokens))
            metrics.extend(tokens.signals.values())
            return plans[-1]

    given = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    with tr.wrapped(model, Watched(**given), output_length="reduced"), torch.no_grad():
        tokens = model.forward_features(image)
    size, assign = torch.ones(plans[0].assign.shape), torch.arange(plans[0].assign.shape[1]).expand(len(image), -1)
    for plan in plans:
        size, assign = sizes(plan, size), plan.assign.gather(1, assign)
    return {"tokens": tokens, "size": size[..., None], "source": membership(assign, size.shape[1])}, plans, metrics
