"""Full width behind the last block where every patch is made again of the rows that are left: a plan's ``restore``."""

from __future__ import annotations

import pytest
import reduced
import torch
from encoder_models import TOLERANCE, shaped, timm_model, tower, transformers_model, whole_model
from encoder_oracle import attend, behind_last_block, entering, norm1, same_rows, scale
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.reduction import Reduction


class Halves(tr.Method, register=False):
    """Behind block 1 every second patch stays; later every patch is half of one row and a quarter of the next."""

    name = "halves"
    title = "for tests"
    stages = ("encoder",)
    blocks = (1,)

    def plan(self, facts):
        return tuple(tr.Step("encoder", layer=block, amount=1, when="after") for block in self.blocks)

    def reduce(self, tokens):
        n, p = tokens.num_tokens, tokens.prefix
        kept = torch.cat([torch.arange(p), torch.arange(p, n, 2)]).expand(len(tokens.features), -1)
        return Reduction.select(kept, n, restore=made(n, p).expand(len(kept), -1, -1))


class HalvesTwice(Halves, register=False):
    blocks = (1, 2)


def made(n: int, p: int) -> torch.Tensor:
    """(n, K): prefix rows stay; patch i is made of rows i // 2 and the one after it, around the end."""
    k = (n - p + 1) // 2
    share = torch.zeros(n, p + k)
    share[:p, :p] = torch.eye(p)
    for i in range(n - p):
        share[p + i, p + i // 2] += 0.5
        share[p + i, p + (i // 2 + 1) % k] += 0.25
    return share


def by_hand(model, pixels, blocks=(1,)):
    """Rows that leave each block at full width, the parts of blocks called one by one."""
    family = family_of(model)
    x, rope = entering(model, pixels)
    p, source = family.facts().tower_prefix, torch.arange(x.shape[1]).expand(x.shape[:2])
    whole, states = torch.eye(x.shape[1]), []
    for i, block in enumerate(family.blocks):
        m = block.module
        x = x + scale(m, 1, attend(block, norm1(m)(x), None, None if rope is None else (rope, source, p)))
        x = x + scale(m, 2, block.mlp(block.norm2(x)))
        if i in blocks:
            whole = whole @ made(x.shape[1], p)
            x, source = (torch.cat([y[:, :p], y[:, p::2]], dim=1) for y in (x, source))
        states.append(torch.einsum("nk,bkd->bnd", whole, x))
    return states


TOWERS = ("timm", "timm_registers", "clip", "siglip", "dinov3", "open_clip")


@pytest.mark.parametrize("method", [Halves, HalvesTwice])
@pytest.mark.parametrize("name", TOWERS)
def test_every_patch_is_made_again_behind_the_last_block(name, method):
    model, pixels = tower(name, 2)
    with torch.no_grad():
        expected = by_hand(model, pixels, method.blocks)[-1]
    with tr.wrapped(model, method()), behind_last_block(model) as seen:
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                model(pixels)
        kept = [[8], [8]] if method is Halves else [[4], [4]]
        assert tr.report(model).tokens_kept == kept
    same_rows(seen, expected)
    with tr.wrapped(model, method(), output_length="reduced"), behind_last_block(model) as seen, torch.no_grad():
        model(pixels)
    assert seen[-1].shape[1] == family_of(model).prefix + kept[0][0]


@pytest.mark.parametrize("method", [Halves, HalvesTwice])
@torch.no_grad()
def test_states_of_all_blocks_are_made_again_too(method):
    model = timm_model("plain")
    pixels = torch.randn(2, 3, 64, 64)
    expected = by_hand(model, pixels, method.blocks)
    with tr.wrapped(model, method()):
        found = model.forward_intermediates(pixels, output_fmt="NLC", intermediates_only=True)
    for state, own in zip(found, expected, strict=True):
        torch.testing.assert_close(state, own[:, 1:], atol=1e-4 * own.abs().max().item(), rtol=1e-4)
    model = transformers_model("clip")
    pixels = torch.randn(2, 3, 32, 32)
    expected = by_hand(model, pixels, method.blocks)
    with tr.wrapped(model, method()):
        found = model(pixels, output_hidden_states=True).hidden_states[1:]
    for state, own in zip(found, expected, strict=True):
        torch.testing.assert_close(state, own, atol=1e-4 * own.abs().max().item(), rtol=1e-4)


@torch.no_grad()
def test_padded_images_equal_each_by_itself():
    grids = [(3, 5), (2, 6), (4, 4)]
    model, inputs = whole_model("siglip2"), shaped(*grids, length=18)
    with tr.wrapped(model, Halves()):
        together = model.vision_model(**inputs).last_hidden_state
        for i, (height, width) in enumerate(grids):
            n = height * width
            one = {name: x[i : i + 1] if name == "spatial_shapes" else x[i : i + 1, :n] for name, x in inputs.items()}
            alone = model.vision_model(**one).last_hidden_state
            torch.testing.assert_close(together[i : i + 1, :n], alone, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_a_language_model_reads_every_patch_of_a_cheaper_tower():
    model = llava()
    inputs, seen = prompt(model, [2, 1], "left"), []
    tower = model.model.vision_tower
    pixels = inputs["pixel_values"]
    bare = model(**inputs).logits
    handle = model.model.multi_modal_projector.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with tr.wrapped(model, Halves()):
        logits = model(**inputs).logits
        report = tr.report(model)
        assert all(image.stages == () for image in tr.trace(model).images)
    handle.remove()
    assert logits.shape == bare.shape
    assert not torch.allclose(logits, bare)
    assert report.tokens_kept == report.tokens_in
    left, whole = report.encoding()["tower"]
    assert left < whole
    assert report.flops == report.flops_unreduced
    layer = model.config.vision_feature_layer
    expected = by_hand(tower, pixels)[layer][:, 1:]
    torch.testing.assert_close(seen[0].flatten(0, 1), expected.flatten(0, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("key", ["llava_next", "internvl"])
@torch.no_grad()
def test_tiles_and_units_of_patches_are_made_again(key):
    model = reduced.model(key)
    case = zoo.case(key, "mixed", model)
    bare = model(**case.inputs).logits
    with tr.wrapped(model, Halves()):
        together = model(**case.inputs).logits
        assert tr.report(model).tokens_kept == tr.report(model).tokens_in
        for b in range(len(together)):
            inputs = zoo.alone(key, case, b)
            one = model(**inputs).logits
            last, end = (
                int(m.nonzero().max()) for m in (case.inputs["attention_mask"][b], inputs["attention_mask"][0])
            )
            torch.testing.assert_close(together[b, last], one[0, end], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together, bare)


@torch.no_grad()
def test_a_tower_that_packs_refuses():
    model = reduced.model("qwen2_5_vl")
    assert not family_of(model).facts().restores
    with (
        tr.wrapped(model, Halves()),
        pytest.raises(ValueError, match=r"makes every patch again.*allowed there: plans without"),
    ):
        model(**zoo.inputs("qwen2_5_vl", "single", model))
