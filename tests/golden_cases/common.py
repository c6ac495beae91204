"""What several drivers share: facts of a stand-in model, and attention maps fed through the library's kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.method import Method
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import STAGES, VisualTokens

FACTS = ModelFacts(
    family="golden", stages=STAGES, tower_depth=24, feature_block=22, has_cls=True, tower_prefix=1, decoder_depth=32
)
BUDGETS = ("keep", "keep_per_image", "keep_per_tile", "keep_per_frame", "keep_fraction")


def make(cls: type[Method], params: Meta[Any], images: int = 1, **given: Any) -> Method:
    """``cls`` with the budget of ``params`` and every hyper-parameter that ``params`` names as ``cls`` does.

    ``keep_total`` is shared by ``images``, rounded down. ``given`` stands in front of what ``params`` says.
    """
    if "keep" not in given:
        budgets = [params[name] for name in BUDGETS if name in params]
        if "keep_total" in params:
            budgets.append(params["keep_total"] // images)
        given["keep"] = budgets[0]
        if any(other != budgets[0] for other in budgets[1:] if isinstance(other, int)):
            raise ValueError(f"the parameters name several budgets, {budgets}")
    own = {f.name for f in dataclasses.fields(cls)} - set(given)
    return cls(**{name: params[name] for name in own if name in params}, **given)


def visual_span(params: Meta[Any], length: int) -> slice:
    """Columns of the visual tokens in a prompt of ``length``: text, image, text."""
    start, n = params["system_len"], params["image_len"]
    params.agree(text_len=length - start - n)
    return slice(start, start + n)


def show(
    method: Method, values: list[Tensor], layout: Layout, features: Tensor | None = None, facts: ModelFacts = FACTS
) -> tuple[VisualTokens, Reduction]:
    """``method`` shown ``values``, one per signal it asks for, in the order in which it asks, and ``features``."""
    (step,) = method.plan(facts)
    if len(values) != len(step.needs):
        raise ValueError(f"{method.name} asks for {len(step.needs)} signals, the vector gives {len(values)}")
    batch, n = (values[0] if features is None else features).shape[:2]
    tokens = VisualTokens(
        features=torch.zeros(batch, n, 1) if features is None else features,
        layout=layout,
        stage=step.stage,
        layer=step.layer,
        amount=step.amount,
        signals=dict(zip(step.needs, values)),
    )
    return tokens, method.reduce(tokens).check(tokens)


def one_or_several(ndim: int, *arrays: Tensor) -> tuple[list[Tensor], Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    """``arrays``, of ``ndim`` dimensions for one image, as a batch; and a function that brings outputs back to one."""
    single = arrays[0].ndim == ndim
    return [
        x[None] if single else x for x in arrays
    ], lambda found: {n: x[0] for n, x in found.items()} if single else found


def kept_mask(reduction: Reduction) -> Tensor:
    """(B, N) bool."""
    return reduction.assign >= 0


def query_and_key(attention: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, R, N) query and (B, 1, N, N) key whose softmax attention, at scale 1, is ``attention`` (B, H, R, N)."""
    attention = attention.float()
    n = attention.shape[-1]
    logits = attention.clamp_min(torch.finfo(torch.float32).tiny).log()
    return logits, torch.eye(n).expand(attention.shape[0], 1, n, n)


def with_cls_key(attention: Tensor) -> Tensor:
    """(..., 1 + N): the [CLS] key put back in front of rows (..., N) it was cut from; a softmax row sums to 1."""
    rest = 1 - attention.sum(dim=-1, keepdim=True)
    if bool((rest < -1e-5).any()):
        raise ValueError("rows of attention sum to more than 1: not post-softmax")
    return torch.cat([rest.clamp_min(0), attention], dim=-1)
