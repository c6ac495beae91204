"""Features of intermediate blocks: of the merged rows, at full width, for every way to ask for them."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from encoder_models import (
    open_clip_model,
    small,
    timm_model,
)
from models import llava, prompt
from probe_methods import MergePairs
from torch import nn
from transformers import Dinov2Backbone, Dinov2Config

import tokenreduce as tr

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
