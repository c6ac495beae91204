"""Models whose text encoder reads the pictures, against the bare model whose encoder is handed fewer columns by hand."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from probe_methods import MergeAt, Ragged
from torch.utils.flop_counter import FlopCounterMode

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.beside import columns_left, fewer_columns, merged, seats

TOLERANCE = 3e-5  # float32 logits of size 5
STEPS = 4
PLAN = (
    [["i0"], ["i1"]],
    "right",
)  # one picture a prompt is all that the processor makes; learned positions count columns
METHODS = [
    tr.Uniform(keep=0.5),
    tr.Random(keep=5),
    tr.Uniform(keep=0.25, positions="renumber"),
    Ragged(),
    MergeAt(),
]
ANSWER = torch.tensor([[2, 30, 31, 32], [2, 40, 41, 42]])


@cache
def model(attn: str = "sdpa"):
    return zoo.build("florence2", attn)


@torch.no_grad()
def forward(inputs, *methods, attn="sdpa"):
    with tr.wrapped(model(attn), *methods):
        logits = model(attn)(**inputs, decoder_input_ids=ANSWER[: len(inputs["input_ids"])]).logits
        return logits, tr.trace(model(attn)), tr.report(model(attn))


def write(inputs, **options):
    return model().generate(**inputs, **{"max_new_tokens": STEPS, "do_sample": False, **options})[:, -STEPS:].tolist()


def test_a_full_budget_changes_nothing():
    inputs = zoo.inputs("florence2", "mixed", model())
    with torch.no_grad():
        bare, tokens = model()(**inputs, decoder_input_ids=ANSWER).logits, write(inputs)
    for method in (tr.Uniform(keep=1.0), tr.Random(keep=16)):
        logits, trace, report = forward(inputs, method)
        assert torch.equal(logits, bare)
        assert (report.flops, report.kv_bytes) == (report.flops_unreduced, report.kv_bytes_unreduced)
        assert [image.tokens_in for image in trace.images] == [16, 16]
        with tr.wrapped(model(), method):
            assert write(inputs) == tokens


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_batch_is_its_samples_with_fewer_columns(method, attn):
    case = zoo.case("florence2", "mixed", model(attn))
    logits, trace, report = forward(case.inputs, method, attn=attn)
    assert report.tokens_kept == [[len(seats(trace, b))] for b in range(2)]
    renumber = method.positions == "renumber"
    for b in range(2):
        alone = zoo.alone("florence2", case, b)
        keep = columns_left(case, trace, b)
        with fewer_columns(model(attn), keep, merged(trace, b), renumber=renumber), torch.no_grad():
            expected = model(attn)(**alone, decoder_input_ids=ANSWER[b : b + 1]).logits[0]
        torch.testing.assert_close(logits[b], expected, atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        assert (model(attn)(**case.inputs, decoder_input_ids=ANSWER).logits - logits).abs().max() > 0.05


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str
)
def test_written_tokens(method, options):
    case = zoo.case("florence2", "mixed", model())
    with tr.wrapped(model(), method):
        tokens, trace = write(case.inputs, **options), tr.trace(model())
    for b in range(2):
        alone = zoo.alone("florence2", case, b)
        renumber = method.positions == "renumber"
        with fewer_columns(model(), columns_left(case, trace, b), merged(trace, b), renumber=renumber):
            assert tokens[b] == write(alone, num_beams=options.get("num_beams", 1))[0]


def test_one_prompt_after_the_other():
    """What is known of a prompt belongs to its call: an unreduced one in between, other lengths, text alone."""
    one, two = (zoo.inputs("florence2", ([["i0"]], None), model(), seed=seed) for seed in (0, 1))
    two = {name: torch.cat([x[:, :-1], x[:, -3:]], dim=1) if name != "pixel_values" else x for name, x in two.items()}
    with tr.wrapped(model(), "uniform", keep=0.25):
        alone = [write(one), write(two)]
        assert [write(two), write(one)] == alone[::-1]
        ids = torch.tensor([[1, 20, 21, 2]])
        text = write({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        assert write(one) == alone[0]
    assert write({"input_ids": ids, "attention_mask": torch.ones_like(ids)}) == text


def test_a_second_turn_reads_the_picture_anew():
    """An encoder-decoder has no cache of its prompt: the next question is a prompt, and what is kept of it the same."""
    case = zoo.case("florence2", ([["i0"]], None), model())
    longer = zoo.follow("florence2", case.inputs, torch.tensor([[50, 51, 52]]))
    with tr.wrapped(model(), "uniform", keep=0.25):
        write(case.inputs)
        first = tr.trace(model()).kept[0].tolist()
        second = write(longer)
        assert tr.trace(model()).kept[0].tolist() == first
        length = case.inputs["input_ids"].shape[1]
        keep = [*columns_left(case, tr.trace(model()), 0), *range(length, length + 3)]
    with fewer_columns(model(), keep):
        assert second == write(longer)


def test_the_bill_is_that_of_a_counter():
    case = zoo.case("florence2", ([["i0"]], None), model())
    inputs = case.inputs
    _, trace, report = forward(inputs, tr.Uniform(keep=0.25))
    counted, caches = [], []
    for keep in (columns_left(case, trace, 0), range(inputs["input_ids"].shape[1])):
        with fewer_columns(model(), keep), torch.no_grad(), FlopCounterMode(display=False, depth=9) as counter:
            out = model()(**inputs, decoder_input_ids=ANSWER[:1], use_cache=True)
        found, language = counter.get_flop_counts(), "Florence2ForConditionalGeneration.model.language_model"
        counted.append(sum(sum(found[f"{language}.{part}"].values()) for part in ("encoder", "decoder")))
        cache = getattr(out, "cache", None) or out.past_key_values
        layers = [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
        caches.append(sum(x.numel() * 4 for layer in layers for x in (layer.keys, layer.values)))
    assert [report.flops, report.flops_unreduced] == pytest.approx(counted, rel=1e-6)
    assert [report.kv_bytes, report.kv_bytes_unreduced] == caches
    assert report.tokens_at_layer == [[4]] * 3
    assert report.step[0] < report.step[1]
    assert report.by_stage["tower"].flops > 0


def test_a_trace_shows_and_saves_itself(tmp_path):
    _, trace, _ = forward(zoo.inputs("florence2", "mixed", model()), tr.Uniform(keep=0.25))
    trace.show()
    trace.save(tmp_path / "trace.npz")
    assert [x.tolist() for x in tr.load_trace(tmp_path / "trace.npz").kept] == [x.tolist() for x in trace.kept]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fastv", "stage 'llm', which a florence2 model does not offer; it offers: projector"),
        ("hiprune", "has none that can be listened to"),
        ("cdpruner", "use a method that looks at the picture alone"),
    ],
)
def test_what_has_no_meaning_is_refused_in_words(method, said):
    with pytest.raises(ValueError, match=said):
        tr.wrap(model(), method, keep=0.5)


def test_outputs_of_another_call_are_refused():
    inputs = zoo.inputs("florence2", ([["i0"]], None), model())
    with tr.wrapped(model(), "uniform", keep=0.5), torch.no_grad():
        out = model()(**inputs)
        with pytest.raises(ValueError, match="what a call left of a prompt is known within that call"):
            model()(
                encoder_outputs=(out.encoder_last_hidden_state,),
                decoder_input_ids=ANSWER[:1],
                attention_mask=inputs["attention_mask"],
            )
