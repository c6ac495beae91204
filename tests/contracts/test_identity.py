"""Contract 1: a full budget is the identity, bit for bit, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from models import llava, prompt, tokens_per_image
from selections import in_language_models

import tokenreduce as tr
from tokenreduce.registry import registry


def hooks(model) -> list[tuple[str, int, int]]:
    return [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()]


def method(name: str, keep):
    more = {"window": 2} if name == "mustdrop" else {}  # a 4 x 4 grid has no windows of 3
    return registry()[name](keep=keep, **more)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("budget", ["fraction", "count"])
@pytest.mark.parametrize("name", in_language_models())
def test_full_budget_is_bit_exact(name, budget, attention):
    model = llava(attention=attention)
    with torch.no_grad():
        model(**prompt(model, [1]))  # transformers installs hooks of its own, once, in the first forward pass
    before, keys = hooks(model), list(model.state_dict())
    keep = 1.0 if budget == "fraction" else tokens_per_image(model)
    for images, pad in (([1], None), ([2, 0, 1], "left"), ([1, 2], "right")):
        inputs = prompt(model, images, pad)
        with torch.no_grad():
            expected = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False) if pad != "right" else None
        with tr.wrapped(model, method(name, keep)), torch.no_grad():
            assert torch.equal(model(**inputs).logits, expected)
            if tokens is not None:
                assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
            assert tr.report(model).tokens_kept == tr.report(model).tokens_in
            assert tr.report(model).flops == tr.report(model).flops_unreduced
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, expected)
    assert hooks(model) == before
    assert list(model.state_dict()) == keys
    assert not any(
        "tokenreduce" in str(getattr(m, "config", None) and m.config._attn_implementation) for m in model.modules()
    )


@pytest.mark.parametrize("name", in_language_models())
def test_text_alone_is_untouched(name):
    model = llava()
    inputs = prompt(model, [0, 0], "left")
    with torch.no_grad():
        expected = model(**inputs).logits
    with tr.wrapped(model, method(name, 0.25)), torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
        assert tr.trace(model).kept[0].tolist() == []
        assert tr.report(model).tokens_in == [[], []]


@pytest.mark.parametrize("keep", [1, 2, 7, 15, 16, 0.01, 0.25, 1 / 3, 0.5, 0.999])
@pytest.mark.parametrize(
    "name",
    [name for name, cls in registry().items() if cls.counts_at == "kept" and cls.shortens and "image" in cls.media],
)
def test_the_budget_is_filled_exactly_and_in_source_order(name, keep):
    model = llava()
    inputs = prompt(model, [2, 1], "left")
    n = tokens_per_image(model)
    count = keep if isinstance(keep, int) else max(1, round(keep * n))
    if name in ("dymu", "pitome", "tome") and count < 2:  # merges pairs
        with pytest.raises(ValueError, match="leave at least 2"):  # three blocks can halve 16 patches three times
            tr.wrap(model, method(name, keep))
        return
    with tr.wrapped(model, method(name, keep)), torch.no_grad():
        model(**inputs)
        trace, report = tr.trace(model), tr.report(model)
    assert report.tokens_in == [[n, n], [n]]
    assert report.tokens_kept == [[count, count], [count]]
    last = max(trace.kept_at, default=0)
    kept = trace.kept_at[last] if trace.kept_at else trace.kept
    for b, images in enumerate((2, 1)):
        assert len(kept[b]) == images * count
        assert kept[b].tolist() == sorted(set(kept[b].tolist()))
        assert (inputs["input_ids"][b][kept[b]] == model.config.image_token_id).all()


@pytest.mark.parametrize("keep", [0.25, 0.5, 54])
@pytest.mark.parametrize(
    "name", [name for name, cls in registry().items() if cls.counts_at == "average" and "image" in cls.media]
)
def test_an_average_over_layers_is_filled(name, keep):
    model = llava(grid=12)
    inputs = prompt(model, [2, 1], "left")
    with tr.wrapped(model, method(name, keep)), torch.no_grad():
        model(**inputs)
        trace, depth = tr.trace(model), model.get_decoder().config.num_hidden_layers
    for image in trace.images:
        held = sum(len(image.kept(layer)) for layer in range(depth))
        assert abs(held / depth - (keep if isinstance(keep, int) else keep * 144)) < 0.7


@pytest.mark.parametrize("keep", [0.25, 0.5, 54])
def test_mustdrop_fills_its_average_over_layers(keep):
    """In the counting of the paper: a layer that filters counts with what it passes on."""
    model = llava(grid=12)
    inputs = prompt(model, [2, 1], "left")
    with tr.wrapped(model, tr.MustDrop(keep=keep)), torch.no_grad():
        model(**inputs)
        report = tr.report(model)
    both, one = zip(*report.tokens_at_layer)
    assert sum([*one[1:], one[-1]]) / len(one) == pytest.approx(keep if isinstance(keep, int) else keep * 144, abs=0.5)
    assert both == tuple(2 * n for n in one)


@pytest.mark.parametrize("keep", [0.25, 0.5, 9])
def test_holitom_fills_the_budget_of_a_video_and_leaves_images_alone(keep):
    model = llava()
    inputs = prompt(model, [3])
    method = tr.HoliTom(keep=keep, inner_keep=1.0)
    with torch.no_grad():
        expected = model(**inputs).logits
        with tr.wrapped(model, method):
            assert torch.equal(model(**inputs).logits, expected)
        with tr.wrapped(model, method, images_as_video=True):
            model(**inputs)
            report = tr.report(model)
    assert report.tokens_in == [[48]]
    assert report.tokens_kept == [[keep if isinstance(keep, int) else round(keep * 48)]]
