"""Images that are left with numbers of rows of their own, by what they show: each as by itself, in any batch."""

from __future__ import annotations

import pytest
import reduced
import torch
from encoder_models import TIMM, TOLERANCE, timm_model, transformers_model
from models import llava, prompt
from probe_methods import MergeAlike, MergePairs

import tokenreduce as tr
from tokenreduce.adapters.hooks.joined_passes import joined_passes
from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.eval import tiny_models as zoo

TOWERS = ["clip", "siglip", "dinov2_with_registers", "dinov3"]


def tower(kind: str) -> torch.nn.Module:
    return timm_model(kind) if kind in TIMM else transformers_model(kind)


@pytest.mark.parametrize(("when", "proportional"), [("middle", True), ("middle", False), ("after", True)])
@pytest.mark.parametrize("kind", [*TOWERS, "plain", "eva02"])
@torch.no_grad()
def test_images_equal_each_by_itself(kind, when, proportional):
    model = tower(kind)
    side = 56 if kind == "eva02" else 64 if kind == "plain" else 32
    pixels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(3))
    run = model.forward_features if kind in TIMM else lambda x: model(x).last_hidden_state
    method = MergeAlike(when=when, proportional=proportional)
    with tr.wrapped(model, method):
        together, report, trace = run(pixels), tr.report(model), tr.trace(model)
        for i, image in enumerate(pixels.split(1)):
            torch.testing.assert_close(together[i : i + 1], run(image), atol=TOLERANCE, rtol=TOLERANCE)
            alone = tr.report(model)
            assert alone.tokens_kept[0] == report.tokens_kept[i]
            assert [layer[0] for layer in alone.tokens_at_layer] == [layer[i] for layer in report.tokens_at_layer]
            assert torch.equal(tr.trace(model).images[0].standing_for(), trace.images[i].standing_for())
    assert len({kept[0] for kept in report.tokens_kept}) > 1, "unequal counts"


@torch.no_grad()
def test_with_another_method_in_the_same_block():
    model, pixels = transformers_model("clip"), torch.randn(3, 3, 32, 32)
    for methods in ((MergeAlike(), MergePairs(r=2)), (MergePairs(r=2), MergeAlike())):
        with tr.wrapped(model, *methods):
            together, kept = model(pixels).last_hidden_state, tr.report(model).tokens_kept
            for i, image in enumerate(pixels.split(1)):
                torch.testing.assert_close(together[i : i + 1], model(image).last_hidden_state, atol=TOLERANCE, rtol=0)
        assert len({own[0] for own in kept}) > 1


def test_gradients_reach_every_image_of_its_own_number():
    model, pixels = transformers_model("siglip"), torch.randn(3, 3, 32, 32)
    with tr.wrapped(model, MergeAlike()):
        model(pixels).pooler_output.square().sum().backward()
        together = model.embeddings.patch_embedding.weight.grad.clone()
        model.zero_grad()
        for image in pixels.split(1):
            model(image).pooler_output.square().sum().backward()
    torch.testing.assert_close(together, model.embeddings.patch_embedding.weight.grad, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_rows_as_they_are_left_must_be_equally_many():
    model, pixels = transformers_model("clip"), torch.randn(4, 3, 32, 32)
    with tr.wrapped(model, MergeAlike(), output_length="reduced"):
        model(pixels[:1])
        with pytest.raises(
            ValueError, match=r"output_length='reduced', but the images .* are left with \d+ to \d+ patches"
        ):
            model(pixels)


@torch.no_grad()
def test_a_prompt_of_a_language_model():
    model = llava("clip", grid=6)
    inputs = prompt(model, [2, 1], pad="left")
    with tr.wrapped(model, MergeAlike()):
        together, kept = model(**inputs).logits, tr.report(model).tokens_kept
        answers = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        for b, images in enumerate((slice(0, 2), slice(2, 3))):
            there = inputs["attention_mask"][b].bool()
            one = {"input_ids": inputs["input_ids"][b][there][None], "pixel_values": inputs["pixel_values"][images]}
            last = int(there.nonzero().max())
            alone = model(**one).logits[0, -1]
            torch.testing.assert_close(together[b, last], alone, atol=reduced.TOLERANCE, rtol=0)
            assert tr.report(model).tokens_kept == [kept[b]]
            assert torch.equal(model.generate(**one, max_new_tokens=3, do_sample=False)[0, -3:], answers[b, -3:])
    assert len({n for own in kept for n in own}) > 1


#: tiles, several sizes, packed, packed with windows, deep-stacked, squares of patches
KEYS = ["llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "llava_onevision", "gemma3", "glm4v"]


@pytest.mark.parametrize("key", [KEYS[0], KEYS[1], *(pytest.param(key, marks=pytest.mark.long) for key in KEYS[2:])])
@torch.no_grad()
def test_families(key):
    model = reduced.model(key)
    case = zoo.case(key, ([["i0"], ["i1", "i2"]], "left"), model, seed=2)
    with tr.wrapped(model, MergeAlike(blocks=(0, 1))):
        together, kept = model(**case.inputs).logits, tr.report(model).tokens_kept
        for b, mask in enumerate(case.inputs["attention_mask"].bool()):
            alone = model(**zoo.alone(key, case, b)).logits[0, -1]
            torch.testing.assert_close(together[b, int(mask.nonzero().max())], alone, atol=reduced.TOLERANCE, rtol=0)
            assert tr.report(model).tokens_kept == [kept[b]]
    assert len({n for own in kept for n in own}) > 1


def test_passes_in_which_other_blocks_merged_are_joined():
    """What did not happen to an image left it as it was."""
    units, states = torch.arange(4)[None], []
    for merged in ({0: [0, 0, 1, 2], 2: [0, 0, 1]}, {2: [0, 1, 1, 2]}, {}):
        state = TowerState.start(torch.randn(1, 4, 3), [tr.Layout(2, 2)])
        state.came = [[4]]
        for block, assign in merged.items():
            joined = torch.tensor([assign])
            first = [assign.index(row) for row in range(max(assign) + 1)]
            state.apply(tr.Reduction.merge(joined, torch.tensor([first])), block, "probe")
        states.append(state)
    whole = joined_passes(states)
    assert [(p.layer, left) for p, left in zip(whole.history, whole.left)] == [(0, [3, 4, 4]), (2, [2, 3, 4])]
    assert whole.history[0].assign.tolist() == [[0, 0, 1, 2], *units.tolist(), *units.tolist()]
    assert whole.history[1].assign.tolist() == [[0, 0, 0, 1], [0, 1, 1, 2], *units.tolist()]
    assert [whole.history[1].source[i, :n].tolist() for i, n in enumerate(whole.numbers)] == [
        [0, 3],
        [0, 1, 3],
        [0, 1, 2, 3],
    ]
    assert whole.size.tolist() == [[3, 1, 0, 0], [1, 2, 1, 0], [1, 1, 1, 1]]
    assert not whole.alike
