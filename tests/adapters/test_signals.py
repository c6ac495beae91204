"""Signals equal what eager attention maps would say, while the model never makes one."""

from __future__ import annotations

import pytest
import torch
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import (
    AttentionReceived,
    AttentionWalk,
    ClsAttention,
    ImageFingerprint,
    LastQueryAttention,
    TextAttention,
)

TOLERANCE = 2e-6  # float32 softmax, two orders of summation


def spy(stage, needs, layer=None):
    """A method that keeps the first half and notes what it was shown."""

    class Spy(Method, register=False):
        name, title, stages = "spy", "spy", (stage,)

        def plan(self, facts: ModelFacts):
            return (Step(stage, layer=layer, needs=needs),)

        def reduce(self, tokens):
            seen.append(tokens)
            k = tokens.num_tokens // 2
            keep = torch.arange(k).expand(len(tokens.features), k)
            return Reduction.select(keep, tokens.num_tokens)

    seen: list = []
    return Spy(), seen


@pytest.fixture(scope="module", params=["clip-llama", "siglip-qwen2"])
def pair(request):
    """The same weights under sdpa and under eager attention."""
    tower, lm = request.param.split("-")
    return llava(tower, lm, "sdpa"), llava(tower, lm, "eager")


@pytest.mark.parametrize("block", range(4))
def test_tower_signals(pair, block):
    model, eager = pair
    inputs = prompt(model, [2, 1], "left")
    cls = model.config.vision_config.model_type == "clip_vision_model"
    needs = [AttentionReceived(block), ImageFingerprint()]
    if cls:
        needs += [ClsAttention(block), ClsAttention(block, "max")]
    method, seen = spy("projector", tuple(needs))
    with tr.wrapped(model, method), torch.no_grad():
        model(**inputs)
    tower = eager.model.vision_tower
    with torch.no_grad():
        maps = tower(inputs["pixel_values"], output_attentions=True).attentions[block]
    (tokens,) = seen
    prefix = 1 if cls else 0
    expected = maps.mean(dim=(1, 2))[:, prefix:]
    torch.testing.assert_close(tokens.signal(AttentionReceived(block)), expected, atol=TOLERANCE, rtol=0)
    if cls:
        row = maps[:, :, 0, 1:]
        torch.testing.assert_close(tokens.signal(ClsAttention(block)), row.mean(1), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(tokens.signal(ClsAttention(block, "max")), row.amax(1), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("layer", [1, 3])
def test_decoder_statistics_without_a_map(pair, layer, pad):
    """Raw products, the layer to come and the walk, against the maps and the projections of the bare model."""
    model, eager = pair
    inputs = prompt(model, [2, 1], pad)
    raw, ahead = LastQueryAttention(layer - 1, softmax=False), LastQueryAttention(layer, ahead=True)
    both, walk = LastQueryAttention(layer, softmax=False, ahead=True), AttentionWalk(layer - 1, 3, 1.0)
    method, seen = spy("llm", (raw, ahead, both, walk), layer)
    with tr.wrapped(model, method), torch.no_grad():
        model(**inputs)
        image_columns = [(i.sample, i.columns) for i in tr.trace(model).images]
        flops = tr.report(model).signal_flops
        maps = eager(**inputs, output_attentions=True).attentions
    found = {s: torch.cat([tokens.signal(s) for tokens in seen]) for s in (raw, ahead, both, walk)}
    real = inputs["attention_mask"].bool()
    for i, (b, at) in enumerate(image_columns):
        end = int(real[b].nonzero()[-1])
        # logits are the log of attention but for a constant of each head: differences are theirs
        for signal, which in ((raw, layer - 1), (both, layer)):
            logits = maps[which][b, :, end].log()[:, at].mean(0)
            value = found[signal][i]
            torch.testing.assert_close(value - value[0], logits - logits[0], atol=2e-5, rtol=0)
        torch.testing.assert_close(found[ahead][i], maps[layer][b, :, end, at].mean(0), atol=TOLERANCE, rtol=0)
        row = real[b].float() / real[b].sum()
        mass = row.expand(maps[0].shape[1], 1, -1)
        for _ in range(walk.steps):
            mass = (mass * real[b]) @ maps[layer - 1][b]
        expected = mass[:, 0, at].square().mean(0).sqrt()
        torch.testing.assert_close(found[walk][i], expected, atol=TOLERANCE, rtol=0)
    width, counts = model.get_decoder().config.hidden_size, real.sum(1)
    kv = model.get_decoder().layers[0].self_attn.k_proj.out_features
    projections = int(counts.sum()) * width * 2 * (width + kv)
    assert flops == 2 * (projections + 3 * int(counts.sum()) * width + 3 * int(counts.square().sum()) * width)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("layer", [1, 3])
def test_decoder_signals(pair, layer, pad):
    model, eager = pair
    inputs = prompt(model, [2, 1], pad)
    last, received = LastQueryAttention(layer - 1), AttentionReceived(layer - 1, "llm")
    text_sum, text_max = TextAttention(layer - 1, "sum"), TextAttention(layer - 1, "max")
    method, seen = spy("llm", (last, received, text_sum, text_max), layer)
    with tr.wrapped(model, method), torch.no_grad():
        model(**inputs)
        image_columns = [(i.sample, i.columns) for i in tr.trace(model).images]
        maps = eager(**inputs, output_attentions=True).attentions[layer - 1]
    rows = torch.cat([tokens.signal(last) for tokens in seen])
    columns = torch.cat([tokens.signal(received) for tokens in seen])
    sums = torch.cat([tokens.signal(text_sum) for tokens in seen])
    peaks = torch.cat([tokens.signal(text_max) for tokens in seen])
    for i, (b, at) in enumerate(image_columns):
        real = inputs["attention_mask"][b].bool()
        end = int(real.nonzero()[-1])
        torch.testing.assert_close(rows[i], maps[b, :, end, at].mean(0), atol=TOLERANCE, rtol=0)
        text = real & (inputs["input_ids"][b] != model.config.image_token_id)
        block = maps[b].mean(0)[text][:, at]  # heads first, then queries
        torch.testing.assert_close(sums[i], block.sum(0), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(peaks[i], block.amax(0), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(columns[i], maps[b][:, real][:, :, at].mean(dim=(0, 1)), atol=TOLERANCE, rtol=0)


def test_only_the_listened_modules_are_touched_and_nothing_else_changes(pair):
    model, _ = pair
    inputs = prompt(model, [1])
    tower = model.model.vision_tower
    with torch.no_grad():
        expected = tower(inputs["pixel_values"]).last_hidden_state
    with tr.wrapped(model, "hiprune", keep=4), torch.no_grad():
        touched = [n for n, m in model.named_modules() if hasattr(m, "_tokenreduce_front")]
        assert touched == [f"model.vision_tower.encoder.layers.{i}.self_attn" for i in (1, 2)]
        assert torch.equal(tower(inputs["pixel_values"]).last_hidden_state, expected)


def test_no_attention_map_is_made(pair, monkeypatch):
    """The largest tensor of any signal stays far below N x N when the chunk is small."""
    from tokenreduce.kernels import attention_received as kernel

    n, chunk, largest = 400, 16, 0
    original = torch.Tensor.softmax

    def softmax(x, *args, **kwargs):
        nonlocal largest
        largest = max(largest, x.numel())
        return original(x, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "softmax", softmax)
    q = torch.randn(1, 2, n, 8)
    kernel.attention_received(q, q, 0.3, chunk=chunk)
    assert largest == 2 * chunk * n


@pytest.mark.parametrize("repeat", [1, 3])
def test_which_encoded_picture_stands_behind_which_prompt_image(repeat):
    from tokenreduce.adapters.hooks.visual_token_positions import place, share_of
    from tokenreduce.adapters.visual_inputs import Picture
    from tokenreduce.layout import Layout

    counts, pictures = [2, 0, 1, 3], [Picture(Layout(1, n), n) for n in (3, 2, 4, 1, 2, 3)]
    first = [0, 2, 2, 3]
    behind = [list(range(f, f + n)) for f, n in zip(first, counts)]
    visual = torch.zeros(len(counts) * repeat, 12, dtype=torch.bool)
    for row, own in enumerate(behind):
        visual[row * repeat : (row + 1) * repeat, 2 : 2 + sum(pictures[i].columns for i in own)] = True
    assert share_of(int(visual.sum()), pictures, 0, len(visual)) == (0, 6, repeat)
    placed = place(visual, torch.zeros_like(visual), pictures, repeat)
    assert [item.behind[0] for item in placed] == [i for own in behind for _ in range(repeat) for i in own]
    assert [item.image.sample for item in placed] == [
        row * repeat + copy for row, own in enumerate(behind) for copy in range(repeat) for _ in own
    ]
    assert all(len(item.image.columns) == pictures[item.behind[0]].columns for item in placed)


def test_which_pictures_a_chunk_of_a_prompt_shows():
    from tokenreduce.adapters.hooks.visual_token_positions import share_of
    from tokenreduce.adapters.visual_inputs import Picture
    from tokenreduce.layout import Layout

    pictures = [Picture(Layout(1, n), n) for n in (3, 2, 4)]
    assert share_of(9, pictures, 0, 1) == (0, 3, 1)
    assert share_of(3, pictures, 0, 1) == (0, 1, 1)
    assert share_of(6, pictures, 1, 1) == (1, 3, 1)
    assert share_of(4, pictures, 0, 1) is None  # cuts the second picture
    assert share_of(3, pictures, 0, 2) is None  # whose picture?
    assert share_of(7, [], 0, 1) is None
