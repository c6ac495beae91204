"""Encoders as people run them: images of any size, intermediate features, inputs that no block can take."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from encoder_models import (
    INTERPOLATES,
    TOLERANCE,
    TRANSFORMERS,
    open_clip_model,
    timm_model,
    transformers_model,
    whole_model,
)
from encoder_oracle import explicit
from models import llava, prompt
from probe_methods import MergePairs
from timm.models.naflexvit import NaFlexVit
from torch import nn
from transformers import AutoConfig, AutoModel, Dinov2Backbone, Dinov2Config

import tokenreduce as tr
from tokenreduce.adapters.hooks.ragged_rows import View
from tokenreduce.adapters.registry import family_of
from tokenreduce.wrapping import SLOT

METHODS = [tr.ToMe(keep=0.5), tr.PiToMe(keep=0.5), tr.PiToMe(keep=0.5, preset="llava")]
IDS = ["tome", "pitome", "pitome-llava"]


def small(name: str, **more) -> nn.Module:
    """Architecture ``name`` of timm with four narrow blocks and weights that matter."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0, depth=4, embed_dim=48, num_heads=4, **more).eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.2)
    return model


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


def shaped(*grids: tuple[int, int], length: int) -> dict[str, torch.Tensor]:
    """Inputs of SigLIP 2 of any aspect: patches of one image per grid, padded to ``length``."""
    real = torch.arange(length) < torch.tensor([height * width for height, width in grids])[:, None]
    torch.manual_seed(1)
    patches = torch.randn(len(grids), length, 192)
    return {"pixel_values": patches, "pixel_attention_mask": real.long(), "spatial_shapes": torch.tensor(grids)}


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


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("sam_vision_model", "windows"),
        ("vitdet", "windows"),
        ("swin", "windows"),
        ("hiera", "between its stages"),
        ("beit", "relative position"),
        ("vit_mae", "at random"),
        ("dinov3_convnext", "convolutions"),
    ],
)
def test_encoders_without_a_place_to_merge_are_refused_with_the_reason(model_type, said):
    small_one = {
        "sam_vision_model": {"num_hidden_layers": 1, "global_attn_indexes": [0]},
        "swin": {"depths": [1, 1, 1, 1]},
    }
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **small_one.get(model_type, {})))
    with pytest.raises(ValueError, match=f"'{model_type}'.*not supported.*{said}.*Instead, "):
        tr.wrap(model, tr.ToMe(keep=0.5))
    assert not tr.is_wrapped(model)


def test_models_of_torchvision_without_a_place_to_merge_are_refused():
    models = pytest.importorskip("torchvision.models")
    for make in (models.swin_t, models.resnet18):
        with pytest.raises(ValueError, match=r"EncoderBlocks; allowed: VisionTransformer.*whole\s*grid"):
            tr.wrap(make(), tr.ToMe(keep=0.5))


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


COLLECT = {
    "forward_intermediates": lambda m, x: m.forward_intermediates(x, output_fmt="NLC", intermediates_only=True),
    "get_intermediate_layers": lambda m, x: m.get_intermediate_layers(x, n=4),
    "NCHW": lambda m, x: [y.flatten(2).mT for y in m.forward_intermediates(x, intermediates_only=True)],
}


@pytest.mark.parametrize("how", COLLECT)
@pytest.mark.parametrize("name", ["plain", "dinov2_reg", "eva02", "qk_norm"])
@torch.no_grad()
def test_intermediate_features_of_timm_are_those_of_the_merged_rows_at_full_width(name, how):
    model = timm_model(name)
    if how == "get_intermediate_layers" and not hasattr(model, how):
        pytest.skip(f"{type(model).__name__} has no {how}")
    pixels = torch.randn(2, 3, *model.patch_embed.img_size)
    prefix, narrow = model.num_prefix_tokens, []
    with tr.wrapped(model, tr.ToMe(r=2)):
        handles = [b.register_forward_hook(lambda m, a, o: narrow.append(o)) for b in model.blocks[:-1]]
        features = model.forward_features(pixels)
        for handle in handles:
            handle.remove()
        stands = [torch.stack([image.stages[i].assign for image in tr.trace(model).images]) for i in range(3)]
        found = COLLECT[how](model, pixels)
        assert torch.equal(model.forward_features(pixels), features)  # only that call is widened
    for rows, assign, wide in zip(narrow, stands, found, strict=False):
        own = rows[:, prefix:]
        torch.testing.assert_close(wide, own.gather(1, assign[..., None].expand(-1, -1, own.shape[-1])))
    torch.testing.assert_close(model.norm(found[-1]), features[:, prefix:])


@torch.no_grad()
def test_feature_maps_of_timm_and_of_a_transformers_backbone():
    maps = timm.create_model("vit_tiny_patch16_224", features_only=True, pretrained=False, out_indices=(2, 5)).eval()
    config = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    backbone = Dinov2Backbone(Dinov2Config(**config, out_features=["stage2", "stage4"])).eval()
    for model, side, read in ((maps, 224, lambda y: y), (backbone, 48, lambda y: y.feature_maps)):
        pixels = torch.randn(1, 3, side, side)
        plain = read(model(pixels))
        with tr.wrapped(model, tr.ToMe(keep=0.5)):
            merged = read(model(pixels))
            n = tr.report(model).tokens_in[0][0]
            assert tr.report(model).tokens_kept == [[n // 2]]
        assert [x.shape for x in merged] == [x.shape for x in plain]
        assert not torch.equal(merged[-1], plain[-1])


@torch.no_grad()
def test_intermediate_features_of_open_clip():
    model = open_clip_model(timm_backed=False)
    pixels = torch.randn(2, 3, 32, 32)
    shapes = [x.shape for x in model.visual.forward_intermediates(pixels)["image_intermediates"]]
    with tr.wrapped(model, tr.ToMe(keep=0.5)):
        found = model.visual.forward_intermediates(pixels)["image_intermediates"]
    assert [x.shape for x in found] == shapes


@torch.no_grad()
def test_patches_that_the_model_drops_while_training_are_refused():
    open_clip = pytest.importorskip("open_clip")
    tower = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 4, "head_width": 12, "patch_dropout": 0.5}
    vocabulary = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=tower, text_cfg=vocabulary).train()
    dropping = small("vit_tiny_patch16_224", img_size=64, patch_drop_rate=0.5).train()
    for run in (lambda m: m.encode_image(torch.randn(2, 3, 32, 32)), lambda m: m(torch.randn(2, 3, 64, 64))):
        with tr.wrapped(model, tr.ToMe(keep=0.5)):
            with pytest.raises(ValueError, match=r"8 patches arrive.*of a grid of 4 x 4.*model.eval"):
                run(model)
            model.eval()
            run(model)
            assert tr.report(model).tokens_kept == [[8], [8]]
        model = dropping


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "samvit_base_patch16"])
def test_blocks_that_only_share_a_name_are_refused(name):
    model = timm.create_model(name, pretrained=False, depth=1, embed_dim=48, num_heads=4)
    with pytest.raises(ValueError, match="allowed: Block, EvaBlock"):
        tr.wrap(model, tr.ToMe(keep=0.5))


@torch.no_grad()
def test_features_of_several_layers_are_all_of_the_same_groups():
    """``vision_feature_layer=[1, 3]``: both halves of a merged token are means over the patches it stands for."""
    model = llava("clip")
    model.config.vision_feature_layer = [1, 3]
    width = model.config.vision_config.hidden_size
    first = model.model.multi_modal_projector.linear_1
    model.model.multi_modal_projector.linear_1 = nn.Linear(2 * width, first.out_features)
    inputs = prompt(model, [1], "left")
    hidden = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[1][:, 1:]
    seen = []
    handle = model.model.multi_modal_projector.linear_1.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with tr.wrapped(model, MergePairs(blocks=(1, 2))):
        model(**inputs)
        assign = tr.trace(model).images[0].standing_for()
    handle.remove()
    assert len(set(assign.tolist())) < len(assign)
    for row in assign.unique().tolist():
        mean = hidden[0, assign == row].mean(0)  # nothing merges before block 1: its input is that of the bare tower
        torch.testing.assert_close(seen[0][0, assign == row, :width], mean.expand(int((assign == row).sum()), -1))


def test_counts_beyond_the_patches_that_come_keep_them_all():
    model = transformers_model("dinov2")
    pixels = torch.randn(1, 3, 16, 16)
    plain = model(pixels).last_hidden_state
    with tr.wrapped(model, tr.ToMe(keep=16)):
        assert torch.equal(model(pixels).last_hidden_state, plain)
        model(torch.randn(1, 3, 48, 48))
        assert tr.report(model).tokens_kept == [[16]]


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


@pytest.fixture
def collected():
    """A wrapped model, its input, and what it returned of its blocks before it was copied."""
    model, x = small("vit_tiny_patch16_224", img_size=64), torch.randn(2, 3, 64, 64)
    tr.wrap(model, "tome", keep=6)
    with torch.no_grad():
        yield model, x, model.forward_intermediates(x, intermediates_only=True)


def test_a_copy_collects_with_hooks_of_its_own(collected):
    model, x, expected = collected
    copied = copy.deepcopy(model)
    tr.unwrap(model)
    assert "forward_intermediates" not in model.__dict__
    assert all(map(torch.equal, copied.forward_intermediates(x, intermediates_only=True), expected))
    tr.unwrap(copied)
    bare = model.forward_intermediates(x, intermediates_only=True)
    assert all(map(torch.equal, copied.forward_intermediates(x, intermediates_only=True), bare))
    assert not torch.equal(bare[-1], expected[-1])


def test_a_collection_that_stops_early_leaves_the_next_pass_alone(collected):
    model, x, expected = collected
    whole, trace = model(x), tr.trace(model)
    some = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert all(map(torch.equal, some, expected[:2]))
    assert tr.trace(model) is trace  # of the last pass that ran to its end
    assert torch.equal(model(x), whole)


def test_a_collection_that_fails_does_not_widen_the_next_pass(collected):
    model, x, _ = collected
    with pytest.raises(AssertionError):
        model.forward_intermediates(x[:, :, :30])
    widths = []
    handle = model.blocks[2].register_forward_hook(lambda block, args, output: widths.append(output.shape[1]))
    model(x)
    handle.remove()
    assert widths[0] < 17
