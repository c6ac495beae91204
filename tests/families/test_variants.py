"""Variants of families: short attention windows in decoders that look both ways, images scaled down after tiling."""

from __future__ import annotations

import pytest
import reduced
import torch
import torch.nn.functional as F
from eager_maps import TOLERANCE, anyres, maps, shown
from probe_methods import MergeAt, Ragged
from test_zoo import VARIANTS

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.eval.tiny_models.llava import best_tiles, without_padding
from tokenreduce.signals import AttentionReceived, LastQueryAttention

METHODS = {
    "both": lambda p: (tr.HiPrune(keep=0.6, positions=p), tr.FastV(keep=0.5, layer=3, positions=p)),
    "ragged llm 1": lambda p: (Ragged(layer=1, positions=p),),
    "merge": lambda p: (MergeAt(positions=p),),
}


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("key", VARIANTS)
def test_variants_equal_the_oracle(key, methods, positions):
    """A window counts the tokens that are left."""
    model = reduced.model(key, **VARIANTS[key])
    for kind in ("single", "mixed"):
        inputs = zoo.inputs(key, kind, model)
        out, trace = reduced.forward(model, inputs, *METHODS[methods](positions))
        reduced.same_logits(model, inputs, out.logits, trace, positions)
        reduced.same_tokens(model, inputs, *reduced.write(model, inputs, *METHODS[methods](positions)), positions)


@pytest.mark.parametrize("key", VARIANTS)
def test_a_full_budget_changes_no_bit(key):
    model = reduced.model(key, **VARIANTS[key])
    inputs = zoo.inputs(key, "mixed", model)
    with torch.no_grad():
        expected = model(**inputs).logits
    out, _ = reduced.forward(model, inputs, tr.HiPrune(keep=1.0), tr.FastV(keep=1.0, layer=3))
    assert torch.equal(out.logits, expected)


def test_a_window_both_ways_has_no_attention_received():
    """A token there is seen by queries before and after it; the statistic is refused rather than wrong."""
    model = reduced.model("gemma3", window=7)
    inputs = zoo.inputs("gemma3", "single", model)
    with tr.wrapped(model, tr.FastV(keep=0.5, layer=2, query="all")), pytest.raises(ValueError, match="window of 7"):
        model(**inputs)
    reduced.forward(model, inputs, tr.FastV(keep=0.5, layer=3, query="all"))  # layer 2 looks at everything


def test_a_window_that_lets_blocks_be_whole_does_not_hide_them():
    """In PaliGemma 2 the prompt sees all of itself: the last query too, however short the window of its layer."""
    model, eager = (reduced.model("paligemma2", attn, window=7) for attn in ("sdpa", "eager"))
    inputs = zoo.inputs("paligemma2", "single", model)
    for layer in (0, 1):
        signals = LastQueryAttention(layer), AttentionReceived(layer, "llm")
        (found,), trace = shown(model, inputs, signals)
        ((weights,),) = maps(eager, inputs, [decoder_of(eager).layers[layer].self_attn])
        image = weights[0][:, :, trace.images[0].columns]
        torch.testing.assert_close(found[signals[0]], image[:, -1].mean(0), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(found[signals[1]], image.mean(dim=(0, 1)), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["single", "mixed"])
@pytest.mark.parametrize("shape", [(4, 64), (64, 4)], ids=["wide", "tall"])
@pytest.mark.parametrize("key", ["llava_next", "llava_next_video", "llava_onevision"])
def test_of_a_long_strip_only_the_base_view_is_left(key, shape, kind, monkeypatch):
    """A rule or a line of text: unpadding takes every row, or every column, of the tiles away."""
    monkeypatch.setattr(zoo.FAMILIES[key], "shapes", [shape, *zoo.FAMILIES[key].shapes[1:]])
    model = reduced.model(key)
    inputs = zoo.inputs(key, kind, model)
    for methods in METHODS.values():
        out, trace = reduced.forward(model, inputs, *methods("keep"))
        assert trace.images[0].tokens_in == 16
        assert [view.num_tokens for view in trace.images[0].layout.views] in ([16], [])
        reduced.same_logits(model, inputs, out.logits, trace)
        reduced.same_tokens(model, inputs, *reduced.write(model, inputs, *methods("keep")))
    _, trace = reduced.forward(model, inputs, tr.ToMe(keep=0.5))
    assert [len(image.stages[-1].source) for image in trace.images] == [image.tokens_in // 2 for image in trace.images]


@pytest.mark.parametrize("methods", METHODS)
def test_an_image_scaled_down_after_tiling(methods):
    key = "llava_onevision"
    model = reduced.model(key, **VARIANTS[key])
    inputs = zoo.inputs(key, "image_and_video", model)
    out, trace = reduced.forward(model, inputs, *METHODS[methods]("keep"))
    assert len(trace.images[0].layout.views) == 2
    reduced.same_logits(model, inputs, out.logits, trace)
    reduced.same_tokens(model, inputs, *reduced.write(model, inputs, *METHODS[methods]("keep")))


def test_scores_of_an_image_scaled_down_after_tiling():
    """What the base view received; and the tiles, without their padding and scaled as their features are."""
    key = "llava_onevision"
    model, eager = (reduced.model(key, attn, **VARIANTS[key]) for attn in ("sdpa", "eager"))
    inputs = zoo.inputs(key, "image_and_video", model)
    signal = AttentionReceived(2)
    (found, _), _ = shown(model, inputs, (signal,))
    (((weights), _),) = maps(eager, inputs, [eager.model.vision_tower.encoder.layers[2].self_attn])
    rows = weights.mean(dim=(1, 2))
    size = inputs["image_sizes"][0].tolist()
    whole = anyres(rows, size, 4)[16:].view(1, 1, *without_padding(size, *(4 * n for n in best_tiles(size))))
    ratio = (whole.numel() / 16) ** 0.5
    scaled = F.interpolate(whole, [int(n // ratio) for n in whole.shape[2:]], mode="bilinear")
    assert scaled.shape != whole.shape
    torch.testing.assert_close(found[signal], torch.cat([rows[0], scaled.flatten()]), atol=TOLERANCE, rtol=0)
