"""The reference for merging inside encoders: the parts of each block called one by one, merging in between.

Shares no code with the hooks: attention is written out, maps and all, and groups are averaged by a one-hot product.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from encoder_models import TOLERANCE
from torch import nn

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of


def explicit(model, x, method):
    """The blocks' parts called one by one, merging in between; returns the last block's output at full width, and the
    row counts each block saw."""
    family = family_of(model)
    facts = family.facts()
    steps = {s.layer: s for s in method.plan(facts)}
    x, rope = entering(model, x)
    p = facts.tower_prefix
    size, assign = torch.ones(x.shape[:2]), torch.arange(x.shape[1]).expand(x.shape[:2])
    source, counts = assign, []
    for i, block in enumerate(family.blocks):
        m = block.module
        counts.append(x.shape[1])
        bias = size.log()[:, None, None] if method.proportional else None
        x = x + scale(m, 1, attend(block, norm1(m)(x), bias, None if rope is None else (rope, source, p)))
        if i in steps and method.when == "middle":
            x, size, assign, source = merge(x, size, assign, source, steps[i], method, p)
        x = x + scale(m, 2, block.mlp(block.norm2(x)))
        if i in steps and method.when == "after":
            x, size, assign, source = merge(x, size, assign, source, steps[i], method, p)
    return x.gather(1, assign[..., None].expand(-1, -1, x.shape[-1])), counts


def entering(model, x):
    """What enters the first block for the inputs ``x``: rows, and their rotary table if there is one."""
    family, caught = family_of(model), {}

    def catch(module, args, kwargs):
        caught["x"], caught["kwargs"] = args[0] if args else kwargs.pop("hidden_states"), kwargs
        raise InterruptedError

    handle = family.blocks[0].module.register_forward_pre_hook(catch, with_kwargs=True)
    with pytest.raises(InterruptedError):
        model(**x) if isinstance(x, dict) else model(x)
    handle.remove()
    return caught["x"], caught["kwargs"].get("rope", caught["kwargs"].get("position_embeddings"))


def merge(x, size, assign, source, step, method, p):
    tokens = tr.VisualTokens(
        features=x,
        layout=tr.Layout(1, 1),
        layer=step.layer,
        size=size,
        amount=step.amount,
        prefix=p,
        signals={step.needs[0]: x},
    )
    plan = method.reduce(tokens)
    k = plan.source.shape[1]
    one_hot = nn.functional.one_hot(plan.assign, k).float() * size[..., None]
    mass = one_hot.sum(1)
    x = torch.einsum("bnk,bnd->bkd", one_hot, x) / mass[..., None]
    return x, mass, plan.assign.gather(1, assign), source.gather(1, plan.source)


def norm1(m):
    return next(
        getattr(m, n) for n in ("norm1", "layer_norm1", "ln_1", "layernorm_before", "rms_norm1") if hasattr(m, n)
    )


def scale(m, i, x):
    for name in (f"ls{i}", f"ls_{i}", f"layer_scale{i}"):
        x = getattr(m, name)(x) if hasattr(m, name) else x
    gamma = getattr(m, f"gamma_{i}", getattr(m, f"lambda_{i}", None))
    return x if gamma is None else x * gamma


def attend(block, x, bias, rope, maps=None):
    """Attention by hand: projections of the module, materialised softmax, which ``maps``, a list, is given, too."""
    a, heads = block.attention, block.heads
    if isinstance(a, nn.MultiheadAttention):
        q, k, v = nn.functional.linear(x, a.in_proj_weight, a.in_proj_bias).chunk(3, -1)
        out = a.out_proj
    elif getattr(a, "qkv", None) is not None:
        b = a.qkv.bias
        if b is None and getattr(a, "q_bias", None) is not None:
            b = torch.cat([a.q_bias, a.k_bias, a.v_bias])
        q, k, v = nn.functional.linear(x, a.qkv.weight, b).chunk(3, -1)
        out = a.proj
    elif hasattr(a, "attention"):  # dinov2 before transformers 5.18
        q, k, v = (getattr(a.attention, name)(x) for name in ("query", "key", "value"))
        out = a.output.dense
    else:
        q, k, v = a.q_proj(x), a.k_proj(x), a.v_proj(x)
        out = next(getattr(a, n) for n in ("out_proj", "proj", "o_proj", "dense", "projection_layer") if hasattr(a, n))
    whole = hasattr(a, "q_norm") and getattr(a.q_norm, "weight", q[0, 0, :0]).numel() == q.shape[-1]  # of all heads
    if whole:
        q, k = a.q_norm(q), a.k_norm(k)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if hasattr(a, "q_norm") and not whole:
        q, k = a.q_norm(q), a.k_norm(k)
    if rope is not None:
        table, source, p = rope
        cos, sin = table if isinstance(table, tuple) else table.chunk(2, -1)[::-1]
        cos, sin = (t[source[:, p:] - p][:, None] for t in (cos, sin))

        def turn(t):
            if isinstance(table, tuple) or getattr(a, "rotate_half", False):
                low, high = t.chunk(2, -1)
                pairs = torch.cat([-high, low], -1)
            else:
                pairs = torch.stack([-t[..., 1::2], t[..., ::2]], -1).flatten(-2)
            return t * cos + pairs * sin

        q, k = (torch.cat([t[:, :, :p], turn(t[:, :, p:])], 2) for t in (q, k))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    weights = logits.softmax(-1)
    if maps is not None:
        maps.append(weights)
    y = (weights @ v).transpose(1, 2).flatten(2)
    if hasattr(a, "norm"):
        y = a.norm(y)
    return out(y)


@contextmanager
def behind_last_block(model):
    """A list of what the last block returns, row by row, in each pass of the ``with`` block."""
    seen: list[torch.Tensor] = []
    handle = (
        family_of(model)
        .blocks[-1]
        .module.register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    )
    try:
        yield seen
    finally:
        handle.remove()


def same_rows(found, expected) -> None:
    assert found
    for one in found:
        torch.testing.assert_close(one, expected, atol=TOLERANCE * expected.abs().max().item(), rtol=TOLERANCE)
