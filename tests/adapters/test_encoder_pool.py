"""Classifiers with the baseline ``pool``: regions averaged in the first block, against the blocks run by hand."""

from __future__ import annotations

import pytest
import torch
from encoder_models import timm_model
from transformers import ViTConfig, ViTForImageClassification

import tokenreduce as tr


def of_timm():
    return timm_model("plain")


def of_transformers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(image_size=64, patch_size=16, **sizes)).eval()


def of_open_clip():
    made_by = pytest.importorskip("open_clip.transformer").VisionTransformer
    torch.manual_seed(0)
    return made_by(image_size=64, patch_size=16, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=16).eval()


@torch.no_grad()
def test_regions_are_averaged_between_attention_and_mlp_of_the_first_block():
    model, x = timm_model("plain"), torch.randn(2, 3, 64, 64)
    rows = model._pos_embed(model.patch_embed(x))
    first, *later = model.blocks
    rows = rows + first.attn(first.norm1(rows))
    cls, patches = rows[:, :1], rows[:, 1:].unflatten(1, (4, 4))
    means = [patches[:, y : y + 2, x : x + 2].mean(dim=(1, 2)) for y in (0, 2) for x in (0, 2)]
    rows = torch.cat([cls, torch.stack(means, dim=1)], dim=1)
    rows = rows + first.mlp(first.norm2(rows))
    for block in later:
        rows = block(rows)
    expected, bare = model.forward_head(model.norm(rows)), model(x)
    with tr.wrapped(model, "pool", keep=4):
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)
    with tr.wrapped(model, "pool", keep=1.0):
        assert torch.equal(model(x), bare)
    assert torch.equal(model(x), bare)


@pytest.mark.parametrize("made", [of_timm, of_transformers, of_open_clip])
@torch.no_grad()
def test_every_librarys_classifiers_have_it(made):
    model, x = made(), torch.randn(2, 3, 64, 64)
    bare = model(x)
    with tr.wrapped(model, "pool", keep=5):
        out, report = model(x), tr.report(model)
        left = [image.stages[0].source for image in tr.trace(model).images]
    assert type(out) is type(bare)
    assert report.tokens_kept == [[5], [5]]
    assert report.tokens_in == [[16], [16]]
    assert report.flops < report.flops_unreduced
    assert torch.equal(left[0], left[1])
