"""Encoders as people run them: images of any size, whole models of pictures and texts."""

from __future__ import annotations

import copy

import pytest
import torch
from encoder_models import (
    IDS,
    INTERPOLATES,
    METHODS,
    TOLERANCE,
    TRANSFORMERS,
    small,
    transformers_model,
    whole_model,
)
from encoder_oracle import explicit
from probe_methods import MergePairs

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of


def check(model, run, grid, method, batch=2):
    """Exactly half of the patches of ``grid`` leave the tower, and the trace says where they were."""
    height, width = grid
    n = height * width
    with tr.wrapped(model, method):
        run()
        report, trace = tr.report(model), tr.trace(model)
        with tr.budget(model, 0.75):
            run()
            wider = tr.report(model)
    assert report.tokens_in == [[n]] * batch
    assert report.tokens_kept == [[round(n / 2)]] * batch
    assert wider.tokens_kept == [[round(0.75 * n)]] * batch
    assert [(image.layout.height, image.layout.width) for image in trace.images] == [grid] * batch
    assert all(image.standing_for().bincount().sum() == n for image in trace.images)


ANY_SIZE = [kind for kind in TRANSFORMERS if kind != "aimv2"]


@pytest.mark.parametrize(
    ("grid", "method"),
    [((2, 2), METHODS[0]), ((6, 6), METHODS[0]), ((7, 3), METHODS[0]), ((4, 8), METHODS[1]), ((7, 3), METHODS[2])],
)
@pytest.mark.parametrize("kind", ANY_SIZE)
@torch.no_grad()
def test_transformers_encoders_keep_a_share_of_the_patches_that_come(kind, grid, method):
    """A configured size of 4 x 4 patches, images of any other."""
    model = transformers_model(kind)
    pixels = torch.randn(2, 3, 8 * grid[0], 8 * grid[1])
    more = {"interpolate_pos_encoding": True} if kind in INTERPOLATES else {}
    check(model, lambda: model(pixels, **more), grid, method)


@pytest.mark.parametrize("kind", [kind for kind in ANY_SIZE if kind not in INTERPOLATES])
@torch.no_grad()
def test_encoders_of_any_size_equal_an_explicit_forward(kind):
    model, pixels = transformers_model(kind), torch.randn(2, 3, 48, 24)
    method, seen = MergePairs(proportional=True), []
    expected, _ = explicit(model, pixels, method)
    with tr.wrapped(model, method):
        handle = family_of(model).blocks[-1].module.register_forward_hook(lambda m, a, o: seen.append(o))
        model(pixels)
        handle.remove()
    torch.testing.assert_close(seen[0], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("kind", ["clip", "siglip", "aimv2", "metaclip_2"])
@torch.no_grad()
def test_models_of_pictures_and_texts_are_wrapped_whole(kind):
    model, pixels = whole_model(kind), torch.randn(2, 3, 32, 32)
    plain = model.get_image_features(pixels).pooler_output
    alone = copy.deepcopy(model.vision_model)
    with tr.wrapped(model, tr.ToMe(keep=0.5)), tr.wrapped(alone, tr.ToMe(keep=0.5)):
        short = model.get_image_features(pixels)
        assert tr.report(model).tokens_kept == [[8], [8]]
        assert torch.equal(short.last_hidden_state, alone(pixels).last_hidden_state)
    assert torch.equal(model.get_image_features(pixels).pooler_output, plain)
    with pytest.raises(ValueError, match=r"vision tower of a .*Model.*wrap that model itself"):
        tr.wrap(model.vision_model, tr.ToMe(keep=0.5))
    assert not tr.is_wrapped(model.vision_model)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("grid", [(2, 2), (6, 6), (4, 8)])
@pytest.mark.parametrize(
    ("name", "patch", "more"),
    [
        ("vit_tiny_patch16_224", 16, {"dynamic_img_size": True}),
        ("vit_tiny_patch16_224", 16, {"dynamic_img_size": True, "dynamic_img_pad": True}),
        ("eva02_tiny_patch14_224", 14, {"dynamic_img_size": True, "img_size": 56}),
        ("vit_small_patch16_dinov3", 16, {}),
        ("vit_small_patch16_rope_mixed_224", 16, {"dynamic_img_size": True}),
        ("vit_pe_core_tiny_patch16_384", 16, {"dynamic_img_size": True, "img_size": 64}),
        ("vit_intern300m_patch14_448", 14, {"img_size": 56}),
        ("naflexvit_base_patch16_gap", 16, {}),
    ],
)
@torch.no_grad()
def test_timm_towers_of_any_size(name, patch, more, grid, method):
    model = small(name, **more)
    less = 3 if more.get("dynamic_img_pad") else 0  # padded up to whole patches by the model
    pixels = torch.randn(2, 3, patch * grid[0] - less, patch * grid[1] - less)
    check(model, lambda: model(pixels), grid, method)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_pe_core_tiny_patch16_384"])
@torch.no_grad()
def test_rotary_towers_equal_an_explicit_forward(name):
    model, pixels = small(name, **({"img_size": 64} if "pe" in name else {})), torch.randn(2, 3, 64, 64)
    method = MergePairs(proportional=True)
    expected, _ = explicit(model, pixels, method)
    with tr.wrapped(model, method):
        seen = []
        handle = model.blocks[-1].register_forward_hook(lambda m, a, o: seen.append(o))
        model(pixels)
        handle.remove()
    torch.testing.assert_close(seen[0], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@torch.no_grad()
def test_an_input_size_set_after_wrapping(method):
    model = small("vit_tiny_patch16_224", img_size=64)
    with tr.wrapped(model, method):
        model.set_input_size((112, 112))
        model(torch.randn(1, 3, 112, 112))
        assert tr.report(model).tokens_kept == [[24]]  # of 49
        assert tr.trace(model).images[0].layout == tr.Layout(7, 7)


@torch.no_grad()
def test_open_clip_towers_that_are_not_square():
    open_clip = pytest.importorskip("open_clip")
    tower = {"image_size": (32, 48), "patch_size": 8, "width": 48, "layers": 4, "head_width": 12}
    vocabulary = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=tower, text_cfg=vocabulary).eval()
    check(model, lambda: model.encode_image(torch.randn(2, 3, 32, 48)), (4, 6), tr.ToMe(keep=0.5))


def test_counts_beyond_the_patches_that_come_keep_them_all():
    model = transformers_model("dinov2")
    pixels = torch.randn(1, 3, 16, 16)
    plain = model(pixels).last_hidden_state
    with tr.wrapped(model, tr.ToMe(keep=16)):
        assert torch.equal(model(pixels).last_hidden_state, plain)
        model(torch.randn(1, 3, 48, 48))
        assert tr.report(model).tokens_kept == [[16]]
