"""Expediting: its place in towers, the grids it makes, and dense heads that find their resolution again."""

from __future__ import annotations

import math

import pytest
import reduced
import timm
import torch
from encoder_models import (
    shaped,
    timm_model,
    tower,
    transformers_model,
    whole_model,
    with_weights,
)
from encoder_oracle import attend, behind_last_block, entering, norm1, same_rows, scale
from models import llava, prompt
from torch import nn
from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.soft_clusters import Cells, neighbour_temperature, soft_clusters


def clustered_by_hand(x, size, across, tau, window=5, iterations=5):
    """Tokens (N, C) of one image one by one: centres (M, C) of rows of so many cells each."""
    (height, width), h, reach = size, len(across), window // 2
    rows = x.view(height, width, -1)
    places = [(i, j, w) for i, w in enumerate(across) for j in range(w)]
    centres = []
    for i, j, w in places:
        down = slice(i * height // h, -(-(i + 1) * height // h))
        centres.append(rows[down, j * width // w : -(-(j + 1) * width // w)].flatten(0, 1).mean(0))
    for _ in range(iterations):
        total, mass = [torch.zeros_like(x[0]) for _ in centres], [0.0] * len(centres)
        for y in range(height):
            for z in range(width):
                near = [
                    c
                    for c, (i, j, w) in enumerate(places)
                    if max(abs(i - y * h // height), abs(j - z * w // width)) <= reach
                ]
                weights = torch.stack([-tau * (centres[c] - rows[y, z]).square().sum() for c in near]).softmax(0)
                for c, weight in zip(near, weights):
                    total[c], mass[c] = total[c] + weight * rows[y, z], mass[c] + weight
        centres = [sums / whole for sums, whole in zip(total, mass)]
    return torch.stack(centres)


def made_again(x, centres, refined, tau, k=20):
    """Each token (N, C) of the mean of its nearest refined centres, weighted by nearness."""
    weight = (-tau * torch.cdist(x, centres).square()).exp()
    if k < weight.shape[1]:
        weight = weight * (weight >= weight.topk(k, dim=1).values[:, -1:])
    return weight / weight.sum(1, keepdim=True) @ refined


def neighbours_apart(x, size):
    """The mean squared distance of tokens (N, C) that are side by side."""
    rows = x.view(*size, -1)
    apart = [(rows[y, z] - rows[y - 1, z]).square().sum() for y in range(1, size[0]) for z in range(size[1])]
    apart += [(rows[y, z] - rows[y, z - 1]).square().sum() for y in range(size[0]) for z in range(1, size[1])]
    return torch.stack(apart).mean()


@torch.no_grad()
def by_hand(model, pixels, alpha, grid):
    """Rows that leave the last block, (B, n, D), its parts called one by one, and the same at full width."""
    family = family_of(model)
    x, rope = entering(model, pixels)
    p, size = family.facts().tower_prefix, family.facts().tower_grid or (4, 4)
    source, known = torch.arange(x.shape[1]).expand(x.shape[:2]), None
    for i, block in enumerate(family.blocks):
        m = block.module
        x = x + scale(m, 1, attend(block, norm1(m)(x), None, None if rope is None else (rope, source, p)))
        x = x + scale(m, 2, block.mlp(block.norm2(x)))
        if i == alpha - 1:
            taus = [20 / neighbours_apart(own[p:], size) for own in x]
            centres = torch.stack(
                [clustered_by_hand(own[p:], size, (grid[1],) * grid[0], tau) for own, tau in zip(x, taus)]
            )
            known = x[:, p:], centres, taus
            x = torch.cat([x[:, :p], centres], dim=1)
            seats = Cells(*size, (grid[1],) * grid[0]).middles()
            source = source[:, torch.cat([torch.arange(p), p + seats])]
    dense = [made_again(*own, refined, tau) for *own, refined, tau in zip(*known[:2], x[:, p:], known[2])]
    return x, torch.cat([x[:, :p], torch.stack(dense)], dim=1)


TOWERS = ("timm", "timm_registers", "eva", "clip", "siglip", "dinov2", "vit", "open_clip")


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_equals_its_blocks_by_hand(name):
    model, pixels = tower(name, 2)
    narrow, dense = by_hand(model, pixels, 2, (3, 2))
    for length, expected in (("full", dense), ("reduced", narrow)):
        with (
            tr.wrapped(model, "expediting", grid=(3, 2), output_length=length),
            behind_last_block(model) as seen,
            torch.no_grad(),
        ):
            model(pixels)
            assert tr.report(model).tokens_kept == [[6], [6]]
        same_rows(seen, expected)


@torch.no_grad()
def test_a_dense_head_finds_its_resolution():
    """DPT reads feature maps of four blocks, two of them behind the clusters, and gives a depth for every pixel."""
    torch.manual_seed(0)
    sides = {"hidden_size": 24, "num_attention_heads": 3, "image_size": 64, "patch_size": 8, "num_hidden_layers": 4}
    backbone = Dinov2Config(**sides, out_features=[f"stage{i}" for i in range(1, 5)], reshape_hidden_states=False)
    more = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "reassemble_factors": [4, 2, 1, 0.5]}
    model = with_weights(DPTForDepthEstimation(DPTConfig(backbone_config=backbone, **more)).eval())
    pixels = torch.randn(2, 3, 64, 64)
    whole = model(pixels).predicted_depth
    with tr.wrapped(model.backbone, "expediting", keep=0.25):
        reduced_ = model(pixels).predicted_depth
        report = tr.report(model.backbone)
    assert report.tokens_kept == [[16], [16]]
    assert report.flops < report.flops_unreduced
    assert reduced_.shape == whole.shape
    assert not torch.allclose(reduced_, whole)
    assert torch.equal(model(pixels).predicted_depth, whole)


@torch.no_grad()
def test_feature_maps_of_timm_and_a_linear_head():
    maps = timm.create_model("vit_tiny_patch16_224", features_only=True, pretrained=False, out_indices=(2, 11)).eval()
    pixels = torch.randn(1, 3, 224, 224)
    plain = maps(pixels)
    with tr.wrapped(maps, "expediting", keep=49):
        found = maps(pixels)
    assert [x.shape for x in found] == [x.shape for x in plain]
    assert torch.equal(found[0], plain[0])  # of a block before any cluster
    assert len(found[1].flatten(2)[0].mT.unique(dim=0)) > 49  # more than copies of the centres
    vit, head = transformers_model("vit"), nn.Linear(24, 5)
    pixels = torch.randn(2, 3, 32, 32)
    with tr.wrapped(vit, "expediting", keep=4):
        classes = head(vit(pixels).last_hidden_state[:, 1:]).mT.unflatten(2, (4, 4))
    assert classes.shape == (2, 5, 4, 4)


@torch.no_grad()
def test_naive_copies_and_a_full_grid():
    model, pixels = timm_model("plain"), torch.randn(1, 3, 64, 64)
    bare = model.forward_features(pixels)
    with tr.wrapped(model, "expediting", grid=(4, 4)):
        assert torch.equal(model.forward_features(pixels), bare)
    with tr.wrapped(model, "expediting", grid=(2, 2), naive=True):
        copies = model.forward_features(pixels)[0, 1:]
    assert len(copies.unique(dim=0)) <= 4
    with tr.wrapped(model, "expediting", grid=(2, 2), norm="l2", k=1):  # one centre weighs 1 by either norm
        torch.testing.assert_close(model.forward_features(pixels)[0, 1:], copies)


@torch.no_grad()
def test_images_of_several_sizes_equal_each_by_itself():
    grids = [(3, 5), (2, 6), (4, 4)]
    model, inputs = whole_model("siglip2"), shaped(*grids, length=18)
    with tr.wrapped(model, "expediting", keep=0.5):
        together = model.vision_model(**inputs).last_hidden_state
        assert tr.report(model).tokens_kept == [[8], [6], [8]]
        for i, (height, width) in enumerate(grids):
            n = height * width
            one = {name: x[i : i + 1] if name == "spatial_shapes" else x[i : i + 1, :n] for name, x in inputs.items()}
            alone = model.vision_model(**one).last_hidden_state
            torch.testing.assert_close(together[i : i + 1, :n], alone, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("key", ["llava_next", "qwen2_5_vl", "internvl", "gemma3"])
@torch.no_grad()
def test_a_batch_equals_its_samples_in_language_models(key):
    model = reduced.model(key)
    case = zoo.case(key, "mixed", model)
    whole, trace = reduced.forward(model, case.inputs, tr.Expediting(keep=0.5))
    for b, mask in enumerate(case.inputs["attention_mask"]):
        inputs = zoo.alone(key, case, b)
        one, own = reduced.forward(model, inputs, tr.Expediting(keep=0.5))
        mine = [image for image in trace.images if image.sample == b]
        assert [image.kept().tolist() for image in mine] == [image.kept().tolist() for image in own.images]
        assert [len(image.kept()) for image in mine] == [round(0.5 * image.tokens_in) for image in mine]
        last, end = (int(m.nonzero().max()) for m in (mask, inputs["attention_mask"][0]))
        torch.testing.assert_close(whole.logits[b, last], one.logits[0, end], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_language_model_reads_centres_or_every_patch():
    model = llava(grid=6)
    inputs = prompt(model, [1, 2], pad="left")
    bare = model(**inputs).logits
    with tr.wrapped(model, "expediting", grid=(3, 4)):
        model(**inputs)
        for image in tr.trace(model).images:
            assert image.kept().tolist() == [6 * y + z for y in (1, 3, 5) for z in (0, 2, 3, 5)]
            assert image.standing_for()[image.kept()].tolist() == list(range(12))
    with tr.wrapped(model, "expediting", grid=(3, 4), reconstruct=True):
        again = model(**inputs).logits
        left, whole = tr.report(model).encoding()["tower"]
    assert left < whole
    assert again.shape == bare.shape
    assert not torch.allclose(again, bare)


def test_a_tower_that_packs_hands_centres_on_alone():
    model = reduced.model("qwen2_5_vl")
    with pytest.raises(
        ValueError, match=r"reconstruct=True, but the vision tower of a qwen2_5_vl model hands on rows of several"
    ):
        tr.wrap(model, "expediting", keep=0.5, reconstruct=True)
    assert not tr.is_wrapped(model)


@torch.no_grad()
def test_tokens_that_are_no_rectangle_are_refused():
    model = timm_model("plain")
    with (
        tr.wrapped(model, tr.ToMe(r=[3]), tr.Expediting(keep=4)),
        pytest.raises(ValueError, match=r"13 tokens are no rectangle of a grid.*no other method"),
    ):
        model(torch.randn(1, 3, 64, 64))
    with tr.wrapped(model, tr.Expediting(keep=9), tr.EViT(blocks=(3,), keep=4)):  # the other way round there is no need
        model(torch.randn(1, 3, 64, 64))
        assert tr.report(model).tokens_kept == [[4]]


def test_the_temperature_of_each_image_is_its_own():
    x = torch.randn(1, 12, 5)
    alone = neighbour_temperature(x, (3, 4))
    torch.testing.assert_close(alone, 20 / neighbours_apart(x[0], (3, 4))[None, None, None])
    both = neighbour_temperature(torch.cat([x, 3 * x, torch.ones_like(x)]), (3, 4))
    torch.testing.assert_close(both[:, 0, 0], torch.tensor([alone.item(), alone.item() / 9, 20]))


def test_cells_of_any_number_tile_the_image():
    for size in ((1, 1), (4, 4), (3, 7), (1, 9), (9, 1), (16, 5)):
        n = math.prod(size)
        for count in range(1, n + 1):
            cells = Cells.of(size, count)
            assert sum(cells.across) == count
            assert max(cells.across) - min(cells.across) <= 1
            assert len(cells.across) <= size[0]
            assert max(cells.across) <= size[1]
            seats = cells.middles().tolist()
            assert seats == sorted(set(seats))
            assert (cells.means().sum(0) > 0).all()
            assert cells.near(1).sum(1).tolist() == [1] * n  # each token is in one cell
            assert cells.near(99).all()
    for count, side in ((256, 16), (144, 12), (64, 8)):
        assert Cells.of((24, 24), count).across == (side,) * side


def test_rows_of_unlike_number_cluster_as_one_by_one():
    x = torch.randn(1, 42, 5)
    cells = Cells(6, 7, (3, 2, 4))
    found = soft_clusters(x, cells, 4, 0.3, 3) @ x
    expected = clustered_by_hand(x[0], (6, 7), cells.across, 0.3, window=3, iterations=4)
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"keep": 0.5, "grid": (2, 2)}, "both set the number of tokens; give one of them"),
        ({"grid": (2,)}, r"grid=\(2,\); allowed: \(rows, columns\)"),
        ({"grid": (0, 2)}, r"grid=0; allowed: an int >= 1"),
        ({"window": 4}, "window=4; allowed: an odd int"),
        ({"temperature": 0.0}, "temperature=0.0; allowed: a number above 0"),
        ({"k": 0}, "k=0 centres"),
        ({"norm": "max"}, "norm='max'"),
        ({"alpha": 0}, "alpha=0"),
    ],
)
def test_what_is_not_offered_is_refused(parameters, said):
    with pytest.raises(ValueError, match=said):
        tr.Expediting(**parameters)


def test_what_a_model_does_not_have_is_refused():
    model = timm_model("plain")
    with pytest.raises(ValueError, match=r"alpha=5; allowed: 1 to 4"):
        tr.wrap(model, "expediting", alpha=5)
    with (
        tr.wrapped(model, "expediting", grid=(5, 3)),
        pytest.raises(ValueError, match=r"grid=\(5, 3\) of an image of 4 x 4"),
    ):
        model(torch.randn(1, 3, 64, 64))
