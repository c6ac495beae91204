"""Images of several sizes in one batch, filled up to one number of patches, and views of unequal budgets: each as by itself."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from encoder_models import (
    METHODS,
    TOLERANCE,
    shaped,
    transformers_model,
    whole_model,
)
from encoder_oracle import explicit
from packaging.version import Version
from probe_methods import MergePairs
from timm.models.naflexvit import NaFlexVit
from torch import nn

import tokenreduce as tr
from tokenreduce.adapters.hooks.ragged_rows import View
from tokenreduce.attachment import SLOT


@pytest.mark.parametrize("method", [*METHODS, tr.ToMe(keep=0.5, proportional=False), tr.ToMe(keep=7)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_siglip2_images_of_several_sizes_equal_each_by_itself(implementation, method):
    grids = [(3, 5), (2, 6), (4, 4), (1, 1)]
    model, inputs = whole_model("siglip2"), shaped(*grids, length=18)
    model.set_attn_implementation(implementation)
    with tr.wrapped(model, method):
        together = model.get_image_features(**inputs).pooler_output
        report, trace = tr.report(model), tr.trace(model)
        for i, (height, width) in enumerate(grids):
            n = height * width
            one = {name: x[i : i + 1] if name == "spatial_shapes" else x[i : i + 1, :n] for name, x in inputs.items()}
            alone = model.get_image_features(**one).pooler_output
            torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=TOLERANCE)
            assert torch.equal(trace.images[i].standing_for(), tr.trace(model).images[0].standing_for())
            assert trace.images[i].layout == tr.Layout(height, width)
    assert report.tokens_in == [[15], [12], [16], [1]]
    assert report.tokens_kept == ([[7], [7], [7], [1]] if method.keep == 7 else [[8], [6], [8], [1]])


@torch.no_grad()
def test_siglip2_equals_an_explicit_forward():
    tower = copy.deepcopy(whole_model("siglip2").vision_model)
    inputs = shaped((3, 5), (5, 3), length=15)
    method, seen = MergePairs(proportional=True), []
    expected, _ = explicit(tower, inputs, method)
    with tr.wrapped(tower, method):
        handle = tower.encoder.layers[-1].register_forward_hook(lambda m, a, o: seen.append(o))
        tower(**inputs)
        handle.remove()
    torch.testing.assert_close(seen[0], expected, atol=TOLERANCE, rtol=TOLERANCE)


def naflex(**more) -> NaFlexVit:
    options = {"num_classes": 0, "depth": 4, "embed_dim": 48, "num_heads": 4, "reg_tokens": 2, **more}
    torch.manual_seed(0)
    model = timm.create_model("naflexvit_base_patch16_gap", **options)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.2)
    return model.eval()


def patches(*grids: tuple[int, int], length: int) -> dict[str, torch.Tensor]:
    """Patches, places and which are real, of one image per grid, padded to ``length``."""
    coord = torch.zeros(len(grids), length, 2, dtype=torch.long)
    valid = torch.zeros(len(grids), length, dtype=torch.bool)
    for i, (height, width) in enumerate(grids):
        coord[i, : height * width] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        valid[i, : height * width] = True
    return {"patches": torch.randn(len(grids), length, 768), "patch_coord": coord, "patch_valid": valid}


@torch.no_grad()
def test_naflex_images_of_one_number_of_patches_and_two_shapes():
    model, inputs = naflex(), patches((4, 6), (3, 8), length=24)
    with tr.wrapped(model, tr.ToMe(keep=0.5)):
        both = model(inputs)
        assert tr.report(model).tokens_kept == [[12], [12]]
        assert [(i.layout.height, i.layout.width) for i in tr.trace(model).images] == [(4, 6), (3, 8)]
        for i in range(2):
            one = model({name: x[i : i + 1] for name, x in inputs.items()})
            torch.testing.assert_close(one, both[i : i + 1], atol=1e-5, rtol=1e-5)


# kinds of NaFlexViT, and the timm from which the bare model runs them on patches of several sizes
NAFLEX_SINCE = {"mixed": "1.0.31", "dinov3": "1.0.27"}
NAFLEX = {
    "learned": {},
    "factorized, no registers": {"pos_embed": "factorized", "reg_tokens": 0},
    "axial, key mask": {"rope_type": "axial", "use_key_only_attn_mask": True},
    "mixed": {"rope_type": "mixed", "class_token": True, "global_pool": "token"},
    "dinov3": {"rope_type": "dinov3", "rope_rotate_half": True},
    "attention pooling": {"global_pool": "map"},
}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, tr.ToMe(keep=0.5)) for kind in NAFLEX),
        *(("learned", method) for method in (*METHODS[1:], tr.ToMe(keep=7), tr.ToMe(keep=0.5, proportional=False))),
    ],
)
@torch.no_grad()
def test_naflex_images_of_several_sizes_equal_each_by_itself(kind, method):
    """Patches that fill up the batch take no part: each image keeps the fraction of its own."""
    since = NAFLEX_SINCE.get(kind, "0")
    if Version(timm.__version__) < Version(since):
        pytest.skip(f"timm before {since} does not run these bare")
    grids = [(4, 6), (2, 5), (5, 5), (2, 5), (1, 1)]
    model, inputs = naflex(**NAFLEX[kind]), patches(*grids, length=28)
    with tr.wrapped(model, method):
        together = model(inputs)
        report, trace = tr.report(model), tr.trace(model)
        flops = 0
        for i, (height, width) in enumerate(grids):
            n = height * width
            alone = model({name: x[i : i + 1, :n] for name, x in inputs.items()})
            torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=TOLERANCE)
            one, image = tr.report(model), trace.images[i]
            flops += one.flops
            assert (report.tokens_in[i], report.tokens_kept[i]) == (one.tokens_in[0], one.tokens_kept[0])
            assert [layer[i] for layer in report.tokens_at_layer] == [layer[0] for layer in one.tokens_at_layer]
            assert image.layout == tr.Layout(height, width)
            assert torch.equal(image.standing_for(), tr.trace(model).images[0].standing_for())
            assert torch.equal(image.kept(), tr.trace(model).images[0].kept())
        assert report.flops == flops
    assert report.tokens_in == [[24], [10], [25], [10], [1]]
    assert report.tokens_kept == ([[7], [7], [7], [7], [1]] if method.keep == 7 else [[12], [5], [12], [5], [1]])
    assert [len(kept) for kept in trace.kept] == [row[0] for row in report.tokens_kept]


@torch.no_grad()
def test_naflex_patches_in_any_order():
    """What fills up the batch need not stand behind the patches, nor these in raster order."""
    model, inputs = naflex(pos_embed_use_grid_sample=True), patches((4, 6), (2, 5), length=28)
    order = torch.randperm(28)
    shuffled = {name: x[:, order] for name, x in inputs.items()}
    with tr.wrapped(model, MergePairs(blocks=())):
        torch.testing.assert_close(model(shuffled), model(inputs), atol=TOLERANCE, rtol=TOLERANCE)
    with tr.wrapped(model, tr.ToMe(keep=0.5)):
        model(shuffled)
        assert tr.report(model).tokens_kept == [[12], [5]]
        places = [image.layout.patches for image in tr.trace(model).images]
        cells = shuffled["patch_coord"] @ torch.tensor([[6, 1], [5, 1]]).T  # by the width of either
        assert places == [tuple(cells[i, shuffled["patch_valid"][i], i].tolist()) for i in range(2)]


def test_naflex_images_of_several_sizes_come_back_at_full_width_only():
    model = naflex()
    with tr.wrapped(model, tr.ToMe(keep=0.5), output_length="reduced"):
        model(torch.randn(1, 3, 32, 32))
        with pytest.raises(ValueError, match=r"output_length='reduced'.*told which patches are real"):
            model(patches((4, 6), (2, 3), length=24))


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2_with_registers"])
@torch.no_grad()
def test_views_that_are_left_with_unequal_numbers_equal_each_by_itself(kind, proportional):
    """Absent rows of the narrower view change nothing for the others."""
    model, pixels = transformers_model(kind), torch.randn(3, 3, 32, 32)
    one = [pixels[:1], pixels[1:2], pixels[2:]]
    alone = []
    for x, keep in zip(one, (8, 5, 8)):
        with tr.wrapped(model, tr.ToMe(keep=keep, proportional=proportional)):
            alone.append(model(x).last_hidden_state)
    with tr.wrapped(model, tr.ToMe(keep=0.5, proportional=proportional)):
        encoder = model.__dict__[SLOT].hooks.encoder
        encoder.views = lambda batch: [View(None, (8,)), View(None, (5,)), View(None, (8,))]
        together = model(pixels).last_hidden_state
        kept = [len(image.standing_for().unique()) for image in tr.trace(model).images]
    assert kept == [8, 5, 8]
    torch.testing.assert_close(together, torch.cat(alone), atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_patches_without_a_token_never_merge():
    model, pixels = transformers_model("clip"), torch.randn(1, 3, 32, 32)
    visible = tuple(cell for cell in range(16) if cell % 4 < 2)
    with tr.wrapped(model, tr.ToMe(keep=0.5)):
        model.__dict__[SLOT].hooks.encoder.views = lambda batch: [View(visible, (4,))]
        model(pixels)
        stands = tr.trace(model).images[0].standing_for()
    hidden = [cell for cell in range(16) if cell not in visible]
    assert len(stands[list(visible)].unique()) == 4
    assert len(stands[hidden].unique()) == 8
    assert not set(stands[hidden].tolist()) & set(stands[list(visible)].tolist())
