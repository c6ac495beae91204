"""Merging inside encoders equals an explicit forward that merges between attention and MLP, for every library."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import timm
import torch
from encoder_models import (
    TIMM,
    TOLERANCE,
    TRANSFORMERS,
    open_clip_model,
    timm_model,
    torchvision_model,
    transformers_model,
)
from encoder_oracle import explicit
from models import llava, prompt
from oracle import positions_of, run
from probe_methods import MergePairs
from torch import nn

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of

ALONE = {
    **{f"timm-{n}": (lambda n=n: timm_model(n)) for n in TIMM},
    **{f"transformers-{n}": (lambda n=n: transformers_model(n)) for n in TRANSFORMERS},
    "torchvision": torchvision_model,
}


def result(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


def pixels(model, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, 3, *(model.patch_embed.img_size if hasattr(model, "patch_embed") else (32, 32)))


@pytest.mark.parametrize("when", ["middle", "after"])
@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_blocks_equal_an_explicit_forward(name, when):
    model = ALONE[name]()
    x = pixels(model)
    method = MergePairs(when=when, proportional=True)
    expected, counts = explicit(model, x, method)
    last = family_of(model).blocks[-1].module
    seen = []
    with tr.wrapped(model, method):
        handle = last.register_forward_hook(lambda m, a, o: seen.append(o[0] if isinstance(o, tuple) else o))
        model(x)
        handle.remove()
        report, trace = tr.report(model), tr.trace(model)
    torch.testing.assert_close(seen[0], expected, atol=TOLERANCE, rtol=TOLERANCE)
    prefix = family_of(model).prefix
    assert report.tokens_at_layer == [[n - prefix] * 2 for n in counts]
    n = report.tokens_in[0][0]
    assert report.tokens_kept == [[n - 6], [n - 6]]
    for image in trace.images:
        stands = image.standing_for()
        assert sorted(set(stands.tolist())) == list(range(n - 6))  # every patch is represented
    assert report.flops < report.flops_unreduced


@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_no_step_is_the_identity_bit_for_bit(name):
    model = ALONE[name]()
    x = pixels(model)
    expected = result(model(x))
    with tr.wrapped(model, MergePairs(blocks=())):
        assert torch.equal(result(model(x)), expected)
        assert tr.report(model).tokens_kept == tr.report(model).tokens_in
    assert torch.equal(result(model(x)), expected)


@pytest.mark.parametrize("timm_backed", [False, True])
@torch.no_grad()
def test_open_clip_encode_image(timm_backed):
    model = open_clip_model(timm_backed)
    x = torch.randn(2, 3, *((224, 224) if timm_backed else (32, 32)))
    plain = model.encode_image(x)
    method = MergePairs(blocks=(0,), r=1) if timm_backed else MergePairs()
    family = family_of(model)
    seen = []
    with tr.wrapped(model, method):
        handle = family.blocks[-1].module.register_forward_hook(lambda m, a, o: seen.append(o))
        short = model.encode_image(x)
        handle.remove()
        assert tr.report(model).tokens_kept == [[family.grid[0] * family.grid[1] - len(method.blocks) * method.r]] * 2
    assert (short - plain).abs().max() > 1e-4
    if not timm_backed:
        expected, _ = explicit(model.visual, x, method)
        torch.testing.assert_close(seen[0], expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(model.encode_image(x), plain)


@pytest.mark.parametrize("method", [tr.ToMe(r=0), tr.ToMe(keep=6), tr.PiToMe(keep=6)], ids=["r0", "tome", "pitome"])
@pytest.mark.parametrize("timm_backed", [False, True])
@torch.no_grad()
def test_published_methods_in_open_clip(timm_backed, method):
    model = open_clip_model(timm_backed)
    x = torch.randn(2, 3, *((224, 224) if timm_backed else (32, 32)))
    plain = model.encode_image(x)
    with tr.wrapped(model, method):
        short = model.encode_image(x)
        report = tr.report(model)
    if method.r == 0:
        assert torch.equal(short, plain)
    else:
        assert report.tokens_kept == [[6], [6]]
        assert not torch.equal(short, plain)
    assert torch.equal(model.encode_image(x), plain)


@pytest.mark.parametrize("order", ["raster", "reference"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_merged_tower_inside_a_llava(tower, order):
    """Equals merging the tower by hand, projecting the merged rows, and running the bare decoder on them."""
    model = llava(tower)
    inputs = prompt(model, [2, 1], "left")
    positions = "renumber" if order == "reference" else "keep"
    method = MergePairs(blocks=(0, 2), output_order=order, positions=positions)
    features, sources = by_hand(model, inputs["pixel_values"], method)
    with tr.wrapped(model, method), torch.no_grad():
        logits = model(**inputs).logits
        trace, report = tr.trace(model), tr.report(model)
        cached = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False), cached)
    assert report.tokens_kept == [[10, 10], [10]]
    bare = model.get_input_embeddings()(inputs["input_ids"]).detach().clone()
    first = 0
    for b in range(2):
        alive = inputs["attention_mask"][b].bool() & (inputs["input_ids"][b] != model.config.image_token_id)
        ids = positions_of(inputs, b, False)
        for image in [i for i in trace.images if i.sample == b]:
            order_of = sources[first].argsort() if order == "raster" else torch.arange(10)
            seats = image.columns[sources[first].sort().values]
            bare[b][seats] = features[first][order_of]
            alive[seats] = True
            first += 1
        left = ids[alive] if order == "raster" else torch.arange(int(alive.sum())) + int(ids[alive][0])
        expected = run(model, bare[b][alive], left)
        torch.testing.assert_close(logits[b][alive], expected, atol=5e-5, rtol=0)


def by_hand(model, x, method):
    """Projected features of the merged rows (M, 10, D), and the patch each sits at."""
    tower = model.model.vision_tower
    depth = len(tower.encoder.layers)

    class Cut(nn.Module):
        config = tower.config

    with torch.no_grad():
        full = tower.encoder.layers
        tower.encoder.layers = full[: depth - 1]
        expected, _ = explicit(tower, x, method)
        tower.encoder.layers = full
        prefix = family_of(tower).prefix
        rows = expected[:, prefix:]
        n = rows.shape[1]
        with tr.wrapped(copy.deepcopy(tower), method) as alone:  # inside a model it is not wrapped by itself
            alone(x)
            stands = torch.stack([i.standing_for() for i in tr.trace(alone).images])
            sources = torch.stack([i.kept() for i in tr.trace(alone).images])
        assert stands.shape[1] == n
        merged = rows.gather(1, sources[..., None].expand(-1, -1, rows.shape[-1]))
        return model.model.multi_modal_projector(merged), sources


def test_signals_of_a_merged_tower_reach_the_projector_stage():
    model = llava("clip")
    inputs = prompt(model, [2, 1], "left")
    with tr.wrapped(model, MergePairs(), tr.FasterVLM(keep=4), tr.FastV(keep=2)), torch.no_grad():
        model(**inputs)
        report, trace = tr.report(model), tr.trace(model)
    assert report.tokens_kept == [[2, 2], [2]]
    assert [s.stage for s in trace.images[0].stages] == ["encoder", "encoder", "projector", "llm"]
    assert [len(s.source) for s in trace.images[0].stages] == [13, 10, 4, 2]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_base_patch16_plus_clip_240", "resnet18"])
def test_architectures_without_a_place_to_merge_are_refused(name):
    model = timm.create_model(name, pretrained=False) if name != "vit_base_patch16_plus_clip_240" else parallel()
    with pytest.raises(ValueError, match="allowed: Block, EvaBlock"):
        tr.wrap(model, MergePairs())
    assert not tr.is_wrapped(model)


def parallel():
    from timm.models.vision_transformer import ParallelScalingBlock

    return timm.create_model("vit_tiny_patch16_224", depth=2, block_fn=ParallelScalingBlock, qk_norm=True)


def test_projector_methods_on_an_encoder_alone_are_refused():
    model = timm_model("plain")
    with pytest.raises(ValueError, match=r"stage 'projector'.*offers: pixels, encoder.*tome"):
        tr.wrap(model, "first", keep=4)


@pytest.mark.parametrize(
    "method", [tr.ToMe(r=3), tr.ToMe(keep=6), tr.PiToMe(keep=6)], ids=["tome-r", "tome-keep", "pitome"]
)
@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_published_methods_on_every_architecture(name, method):
    """Expected counts in every block, every patch stands somewhere, and undoing gives the same numbers back."""
    model = ALONE[name]()
    x = pixels(model)
    plain = model(x)
    n = 16
    facts = dataclasses.replace(family_of(model).facts(), tower_grid=(4, 4))
    steps = {s.layer: s for s in method.plan(facts)}
    with tr.wrapped(model, method):
        short = model(x)
        report, trace = tr.report(model), tr.trace(model)
    assert report.tokens_in == [[n]] * 2
    depth = len(family_of(model).blocks)
    if method.name == "tome":
        counts = [n]
        for block in range(depth):
            r = int(steps[block].amount) if block in steps else 0
            counts.append(counts[-1] - min(r, counts[-1] // 2))
        assert [k for k, _ in report.tokens_at_layer] == counts[:-1]
        assert report.tokens_kept == [[counts[-1]]] * 2
    if method.keep is not None:
        assert report.tokens_kept == [[6], [6]]
    sizes = torch.stack([image.standing_for().bincount() for image in trace.images])
    assert sizes.sum(1).tolist() == [n, n]
    assert sizes.min() >= 1
    again = model(x)
    assert result(short).shape == result(again).shape  # full width to the outside
    assert not torch.equal(result(short), result(again))
    assert torch.equal(result(again), result(plain))


@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_r_zero_is_the_identity_bit_for_bit(name):
    model = ALONE[name]()
    x = pixels(model)
    plain = model(x)
    with tr.wrapped(model, tr.ToMe(r=0)):
        got = model(x)
    assert torch.equal(result(got), result(plain))
