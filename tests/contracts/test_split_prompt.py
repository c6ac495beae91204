"""A prompt read in two parts: a video in chunks, its cache pooled, and the text behind it by what is left."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import split_oracle
import torch
from torch.testing import assert_close

import tokenreduce as tr
from tokenreduce.adapters.upstream.decoder_shape import decoder_shape
from tokenreduce.eval import tiny_models
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.method import Method, Step
from tokenreduce.methods.video_xl_2 import VideoXL2

STEPS, FRAMES = 4, 6
SETTINGS = {
    "whole units": {"selected_units": (1,), "block_size": 2, "previous": 0, "chunk_size": 2, "run": 2},
    "odd blocks": {"selected_units": (9,), "block_size": 1, "previous": 1, "chunk_size": 1, "run": 3},
    "long runs": {"selected_units": (9,), "block_size": None, "chunk_size": 1, "run": 9},
    "as released": {"selected_units": (9,), "block_size": 2, "chunk_size": 2, "suffix_positions": "cache_length"},
}


@pytest.fixture
def longer(monkeypatch):
    """A tiny model whose videos have ``FRAMES`` frames, and prompts of it."""

    def made(key, plan, attn="sdpa"):
        family = tiny_models.KNOWN[key]
        shape = family.film_shape
        monkeypatch.setattr(family, "film_shape", FRAMES if isinstance(shape, int) else (FRAMES, *shape[1:]))
        model = tiny_models.build(key, attn)
        return model, tiny_models.case(key, plan, model)

    return made


def videos_of(model) -> list[split_oracle.Videos]:
    """Per sample of the call behind ``model``, the columns of its videos, frame by frame."""
    trace = tr.trace(model)
    found: list[split_oracle.Videos] = [[] for _ in trace.visual]
    for image in trace.images:
        if image.layout.medium == "video":
            found[image.sample].append([part.tolist() for part in image.columns.chunk(image.layout.frames)])
    return found


def ends_of(model) -> list[int]:
    """Per sample, the column behind the last one of a picture, with what a family writes behind it; of text alone, all."""
    return [int(row.nonzero()[-1]) + 1 if row.any() else len(row) for row in tr.trace(model).visual]


@torch.no_grad()
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("key", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_it_equals_plain_loops_also_while_an_answer_is_written(longer, key, setting):
    model, case = longer(key, ([["v"], ["v", "v"]], "left"))
    method, inputs = VideoXL2(**SETTINGS[setting]), case.inputs
    bare = model(**inputs).logits
    with tr.wrapped(model, method):
        found = model(**inputs, output_hidden_states=True)
        videos, ends = videos_of(model), ends_of(model)
        assert {len(frames) for own in videos for frames in own} == {FRAMES}
        written = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
    units = [[method.selected_units] * len(own) for own in videos]
    told = (model, inputs, ends, videos, units, method)
    for b, own in enumerate(split_oracle.readings(*told)):
        real = inputs["attention_mask"][b].bool()
        assert_close(found.logits[b][real], own.logits, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(bare[b][real][-1], own.logits[-1], atol=1e-3)
    assert written.tolist() == [own.write(STEPS) for own in split_oracle.readings(*told, generate=True)]
    assert all(state.shape[1] == inputs["input_ids"].shape[1] for state in found.hidden_states)


@torch.no_grad()
def test_relevance_by_text_beside_images_text_and_a_method_that_drops(longer):
    """Samples without a video are what they were; each video has its own relevant units, by cosines written down."""
    model, case = longer("qwen2_5_vl", ([["v"], ["i0"], [], ["i1", "v"]], "left"))
    inputs, plain = case.inputs, VideoXL2(block_size=None, chunk_size=1, run=2, topk=1)
    bare = model(**inputs).logits
    text = model.get_input_embeddings()(inputs["input_ids"])
    with tr.wrapped(model, plain):
        found = model(**inputs).logits
        videos, ends = videos_of(model), ends_of(model)
        kept, whole = tr.report(model).tokens_kept, tr.report(model).tokens_in
    rows = split_oracle.caught(model, inputs)
    for b, (row, own, frames) in enumerate(zip(rows, found, videos, strict=True)):
        real = inputs["attention_mask"][b].bool()
        if not frames:
            assert_close(own[real], bare[b][real], atol=2e-5, rtol=1e-4)
            assert kept[b] == whole[b]
            continue
        pictured = {int(c) for one in case.visuals[b] for c in one.columns}
        said = [c for c in row.columns.tolist() if c not in pictured]
        mean = text[b, said].mean(dim=0)
        cosine = torch.cosine_similarity(row.embeds, mean, dim=-1)
        at = {int(c): i for i, c in enumerate(row.columns)}
        units = [[*frames[0][f], *frames[0][f + 1]] for f in range(0, FRAMES, 2)]
        best = max(range(len(units)), key=lambda u: cosine[[at[c] for c in units[u]]].mean())
        told = split_oracle.Reading(model, row, ends[b], frames, [(best,)], plain)
        assert_close(own[real], told.logits, atol=2e-5, rtol=1e-4)
        assert kept[b][-1] < whole[b][-1]


SMALL = {"selected_units": (9,), "block_size": 2, "previous": 0, "chunk_size": 1, "run": 2}


@torch.no_grad()
def test_later_turns_beams_and_proposed_tokens_read_the_same_cache(longer):
    model, case = longer("llava_onevision", ([["v"], ["v"]], "left"))
    inputs, method = case.inputs, VideoXL2(**SMALL)
    tokens = torch.tensor([[7, 8, 9], [5, 6, 4]])
    greedy = {"max_new_tokens": STEPS, "do_sample": False}
    with tr.wrapped(model, method):
        out = model(**inputs)
        report, held = tr.report(model), out.past_key_values.layers
        more = tiny_models.follow("llava_onevision", inputs, tokens)
        following = out.past_key_values.get_seq_length()
        asked = model(
            input_ids=tokens, attention_mask=more["attention_mask"], past_key_values=out.past_key_values
        ).logits
        written = model.generate(**inputs, **greedy)
        searched = model.generate(**inputs, **greedy, num_beams=3)[:, -STEPS:]
        for b in range(2):
            single = tiny_models.alone("llava_onevision", case, b)
            alone = model.generate(**single, **greedy, num_beams=3)[:, -STEPS:]
            assert searched[b].tolist() == alone[0].tolist()
            guessed = model.generate(**single, **greedy, prompt_lookup_num_tokens=2)[:, -STEPS:]
            assert guessed.tolist() == written[b : b + 1, -STEPS:].tolist()
        without = model(**inputs, use_cache=False)
        assert torch.equal(without.logits, out.logits)
        videos, ends = videos_of(model), ends_of(model)
    assert following == inputs["input_ids"].shape[1]
    n = sum(len(frame) for frame in videos[0][0])
    assert report.tokens_in == [[n], [n]]
    assert report.tokens_kept == [[n // FRAMES * 2 + (FRAMES - 2) * (n // FRAMES // 2)]] * 2
    width = held[0].keys.shape[2] - tokens.shape[1]
    assert report.kv_bytes == sum(x[:, :, :width].numel() * 4 for layer in held for x in (layer.keys, layer.values))
    assert report.flops < report.flops_unreduced
    assert report.kv_bytes < report.kv_bytes_unreduced
    for b, own in enumerate(split_oracle.readings(model, inputs, ends, videos, [[(9,)]] * 2, method)):
        embeds = model.get_input_embeddings()(tokens[b])
        ids = own.following + torch.arange(3)[None]
        row = split_oracle.Row(torch.full((3,), -1), embeds, ids, torch.full((3,), -1), {})
        assert_close(asked[b], own.read(row), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_blocks_that_flex_attention_leaves_out_are_those_that_a_mask_hides(longer):
    found = []
    for attn in ("sdpa", "flex_attention"):
        model, case = longer("llava_onevision", ([["v"], ["v", "v"]], "left"), attn)
        with tr.wrapped(model, VideoXL2(**SMALL)), torch.compiler.set_stance("force_eager"):
            found.append(model(**case.inputs).logits[case.inputs["attention_mask"].bool()])
    assert_close(*found, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("key", ["llava_onevision", "ernie4_5_vl_moe"])
def test_the_text_behind_a_video_costs_what_text_does(longer, key):
    """Also where tokens of pictures pass experts of their own: none of them is read twice."""
    model, case = longer(key, ([["v"], ["v", "i0"]], "left"))
    with tr.wrapped(model, VideoXL2(selected_units=())):
        model(**case.inputs)
        report, ends = tr.report(model), ends_of(model)
    shape, depth = decoder_shape(decoder_of(model)), decoder_of(model).config.num_hidden_layers
    real, whole = case.inputs["attention_mask"], 0
    first = [int(row[:end].sum()) for row, end in zip(real, ends, strict=True)]
    marked = case.inputs.get("moe_mm_token_type_ids", torch.zeros_like(real)).bool() & real.bool()
    for row, n, length, end in zip(marked, first, real.sum(dim=1).tolist(), ends, strict=True):
        whole += shape.prefill([n] * depth, [0] * depth, [int(row[:end].sum())] * depth)
        whole += shape.prefill([length - n] * depth, [max(first)] * depth, [int(row[end:].sum())] * depth)
    assert report.flops == whole
    assert report.kv_bytes == report.kv_bytes_unreduced


def test_a_full_budget_and_prompts_without_a_video_change_no_bit(longer):
    model, case = longer("qwen2_5_vl", ([["v"]], None))
    pictures = tiny_models.inputs("qwen2_5_vl", "mixed", model)
    with torch.no_grad():
        bare = [model(**given).logits for given in (case.inputs, pictures)]
        with tr.wrapped(model, VideoXL2(keep=1.0)):
            assert torch.equal(model(**case.inputs).logits, bare[0])
        with tr.wrapped(model, VideoXL2()):
            assert torch.equal(model(**pictures).logits, bare[1])


def test_losses_have_gradients_and_behind_another_method_a_frame_is_what_is_left_of_it(longer):
    model, case = longer("llava_onevision", ([["v"], ["v"]], "left"))
    with tr.wrapped(model, tr.Uniform(keep=0.5), VideoXL2(**SMALL)):
        model.train()
        found = model(**case.inputs, labels=case.inputs["input_ids"])
        found.loss.backward()
        model.eval()
        report, trace = tr.report(model), tr.trace(model)
    gradient = model.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    model.zero_grad(set_to_none=True)
    (entered,) = {stage.source.shape[0] for image in trace.images for stage in image.stages[:1]}
    first = trace.images[0]
    frames = (first.stages[0].source // (first.layout.num_tokens // FRAMES)).bincount().tolist()
    kept = sum(n if f in (0, FRAMES - 1) else max(n // 2, 1) for f, n in enumerate(frames))
    assert sum(frames) == entered
    assert report.tokens_kept == [[kept], [kept]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"position_ids": "again"}, "packed rows"),
        ({"output_attentions": True}, "no attention maps of the whole prompt|fewer rows and columns"),
        ({"cache_implementation": "static"}, "stage 'cache' cannot average what is held by a Static"),
        ({"use_cache": False}, "use_cache=False, but method='video_xl_2'"),
    ],
)
def test_calls_that_cannot_be_read_in_two_parts(longer, given, words):
    model, case = longer("llava_onevision", ([["v"]], None))
    inputs = dict(case.inputs)
    generates = not given.keys() & {"output_attentions", "position_ids"}
    if "position_ids" in given:
        length = inputs.pop("attention_mask").shape[1]
        given = {"use_cache": False, "position_ids": torch.tensor([[*range(3), *range(length - 3)]])}
    elif generates:
        given = {"max_new_tokens": 2, "do_sample": False, **given}
    with torch.no_grad(), tr.wrapped(model, VideoXL2(chunk_size=1)), pytest.raises(ValueError, match=words):
        getattr(model, "generate" if generates else "forward")(**inputs, **given)


def test_attention_that_keeps_to_no_mask_and_checkpoints_are_refused(longer):
    model, case = longer("llava_onevision", ([["v"]], None))
    decoder = model.model.language_model
    with tr.wrapped(model, VideoXL2(**SMALL)):
        model.gradient_checkpointing_enable()
        model.train()
        with pytest.raises(ValueError, match="gradient checkpointing fills no cache"):
            model(**case.inputs)
        model.gradient_checkpointing_disable()
        model.eval()
        known, decoder.config._attn_implementation_internal = decoder.config._attn_implementation, "flash_attention_2"
        try:
            with pytest.raises(ValueError, match="attention 'flash_attention_2' is not told; load the"):
                model(**case.inputs)
        finally:
            decoder.config._attn_implementation_internal = known


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"block_size": 0}, r"block_size=0; allowed: an int >= 1, or None \(frames\)"),
        ({"previous": -1}, "previous=-1; allowed: an int >= 0"),
        ({"run": 1.5}, "run=1.5; allowed"),
        ({"topk": 0}, "topk=0; allowed"),
        ({"selected_units": (1, -1)}, "selected_units=-1; allowed"),
        ({"suffix_positions": "new"}, "suffix_positions='new'; allowed: 'original', 'cache_length'"),
    ],
)
def test_parameters(given, words):
    with pytest.raises(ValueError, match=words):
        VideoXL2(**given)


@dataclass(frozen=True, kw_only=True)
class Odd(Method, register=False):
    """A plan of one step that the test gives."""

    name = "odd"
    title = "a step"
    stages = ("cache",)
    step: Step

    def plan(self, facts):
        return (self.step,)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step("llm", layer=1, split=True), "has split=True; allowed: at stage 'cache'"),
        (Step("cache", layer=0, chunks=(1, 1)), r"chunks=\(1, 1\) with split=False; allowed: with split=True"),
        (Step("cache", layer=0, split=True, chunks=(0, 1)), r"chunks=\(0, 1\) with split=True; allowed"),
    ],
)
def test_steps_that_say_too_much(longer, step, words):
    model, _ = longer("llava_onevision", ([["v"]], None))
    with pytest.raises(ValueError, match=words):
        tr.wrap(model, Odd(step=step))
    with pytest.raises(ValueError, match="beside methods=\\['fastv'\\] inside the language model"):
        tr.wrap(model, VideoXL2(), tr.FastV())
