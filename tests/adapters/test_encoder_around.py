"""Rows that merge around one attention, of encoders alone: means in front of it, copies behind it, full width outside."""

from __future__ import annotations

import pytest
import reduced
import torch
from encoder_models import timm_model, tower
from encoder_oracle import behind_last_block, entering, norm1, same_rows, scale
from torch import nn

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.attention_rows import AttentionRows
from tokenreduce.reduction import Reduction

BLOCKS = (1, 3)


class Pairs(tr.Method, register=False):
    """Around the attention of two blocks patches 2i and 2i + 1 are one row; the last patch is one of its own besides, and the
    prefix rows are left alone."""

    name = "pairs"
    title = "for tests"
    stages = ("encoder",)
    joins = 1

    def plan(self, facts):
        both = tuple(tr.Step("encoder", layer=b, when="attention") for b in BLOCKS)
        join = (tr.Step("encoder", layer=1, when="before", joins=self.joins),) if self.joins > 1 else ()
        return join + both

    def reduce(self, tokens):
        return Reduction.identity(tokens)

    def around(self, tokens):
        (batch, n), p = tokens.features.shape[:2], tokens.prefix
        assign = torch.cat([torch.arange(p), p + torch.arange(n - p) // 2]).expand(batch, -1)
        k = int(assign.max()) + 1
        back = assign.clone()
        back[:, -1] = k
        return AttentionRows(assign, k, torch.full((batch, 1), n - 1), back)


class Videos(Pairs, register=False):
    joins = 2


def projected(block, x, rope, p):
    """Queries, keys and values (B, H, N, d), normed and rotated, and what is done with the heads' values."""
    a, heads = block.attention, block.heads
    if isinstance(a, nn.MultiheadAttention):
        q, k, v = nn.functional.linear(x, a.in_proj_weight, a.in_proj_bias).chunk(3, -1)
        out = a.out_proj
    elif getattr(a, "qkv", None) is not None:
        (q, k, v), out = a.qkv(x).chunk(3, -1), a.proj
    else:
        q, k, v = a.q_proj(x), a.k_proj(x), a.v_proj(x)
        out = next(getattr(a, name) for name in ("out_proj", "o_proj") if hasattr(a, name))
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if rope is not None:
        q, k = (torch.cat([t[:, :, :p], turned(t[:, :, p:], *rope)], dim=2) for t in (q, k))
    return q, k, v, out


def turned(t, cos, sin):
    low, high = t.chunk(2, -1)
    return t * cos + torch.cat([-high, low], -1) * sin


def by_hand(model, pixels, joins=1):
    """Rows (sequences, n, D) behind the last block, each row of each attention made one by one."""
    family = family_of(model)
    x, rope = entering(model, pixels)
    p = family.facts().tower_prefix
    for i, block in enumerate(family.blocks):
        m = block.module
        if i == 1 and joins > 1:
            own = x.unflatten(0, (-1, joins))
            x = torch.cat([own[:, :, :p].flatten(1, 2), own[:, :, p:].flatten(1, 2)], dim=1)
            p *= joins
        q, k, v, out = projected(block, norm1(m)(x), rope, p)
        n, back = x.shape[1], list(range(x.shape[1]))
        if i in BLOCKS:
            rows = [[j] for j in range(p)] + [[p + j, p + j + 1] for j in range(0, n - p, 2)] + [[n - 1]]
            back = [next(r for r, own in reversed([*enumerate(rows)]) if j in own) for j in range(n)]
            q, k, v = (torch.stack([t[:, :, own].mean(2) for own in rows], dim=2) for t in (q, k, v))
        y = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + scale(m, 1, out(y.transpose(1, 2).flatten(2)[:, back]))
        x = x + scale(m, 2, block.mlp(block.norm2(x)))
    return x


TOWERS = ("timm", "timm_registers", "clip", "siglip", "dinov3", "open_clip")


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_attention_equals_a_plain_loop(name):
    model, pixels = tower(name, 4)
    expected = by_hand(model, pixels)
    with behind_last_block(model) as seen:
        model(pixels)
        bare = seen.pop()
        with tr.wrapped(model, Pairs()):
            model(pixels)
            report = tr.report(model)
        same_rows([seen.pop()], expected)
        model(pixels)
    assert torch.equal(seen[-1], bare)
    assert not torch.allclose(expected, bare, atol=1e-3 * bare.abs().max().item())
    assert report.tokens_kept == report.tokens_in == [[16]] * 4  # outside of the attention nothing is less


@pytest.mark.parametrize("name", ["timm_registers", "clip", "siglip", "open_clip"])
@torch.no_grad()
def test_attention_over_frames_equals_a_plain_loop(name):
    model, pixels = tower(name, 4)
    expected = by_hand(model, pixels, joins=2)
    with tr.wrapped(model, Videos(), output_length="reduced"), behind_last_block(model) as seen:
        model(pixels)
    same_rows(seen, expected)


@pytest.mark.parametrize(("name", "projects"), [("timm", True), ("clip", False)])
@torch.no_grad()
def test_the_report_counts_what_attention_saves(name, projects):
    """Where q, k and v merge behind their projections, these run on all rows."""
    model, pixels = tower(name, 1)
    block = family_of(model).blocks[0]
    width = entering(model, pixels)[0].shape[2]
    with tr.wrapped(model, Pairs()):
        model(pixels)
        report = tr.report(model)
    n, left = 17, 1 + 8 + 1
    saved = 2 * (n**2 - left**2) * 2 * width + (2 * (n - left) * 4 * width**2 if projects else 0)
    assert block.heads > 1
    assert report.flops_unreduced - report.flops == len(BLOCKS) * saved


def test_gradients_reach_every_row():
    model, pixels = tower("clip", 1)
    with tr.wrapped(model, Pairs()):
        pixels.requires_grad_()
        model(pixels).last_hidden_state[:, 1:].sum().backward()
    assert (pixels.grad.abs().amax(dim=1) > 0).all()


def test_what_cannot_merge_around_attention_is_refused():
    for name in ("qk_norm", "eva02"):
        with pytest.raises(ValueError, match="normed or rotated out of sight"):
            tr.wrap(timm_model(name), Pairs())
    with pytest.raises(ValueError, match="merges around the attention at stage 'encoder', layer 1 of a llava model"):
        tr.wrap(reduced.model("llava"), Pairs())
    model, pixels = tower("timm", 2)
    for methods, said in (
        ((Pairs(), Pairs()), "allowed: one of them"),
        ((tr.ToMe(r=2), Pairs()), "count several times"),
    ):
        with tr.wrapped(model, *methods), torch.no_grad(), pytest.raises(ValueError, match=said):
            model(pixels)
