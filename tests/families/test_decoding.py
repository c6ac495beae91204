"""Stage ``decode``: what new tokens do not read is as if it were not in the cache, and may be read again."""

from __future__ import annotations

import decode_oracle
import pytest
import reduced
import torch
from decoding_steps import KEEP, STEPS, apart, columns_of, oracle, some, written
from probe_methods import ReadsSome

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of

FAMILIES = ["llava", "qwen2_5_vl", "internvl", "llava_onevision", "gemma3", "qwen3_vl", "smolvlm"]


@pytest.mark.parametrize("kind", ["mixed", "videos"])
@pytest.mark.parametrize("key", FAMILIES)
def test_it_equals_a_cache_without_what_is_not_read(key, kind):
    """In a padded batch of samples with one picture, two and none; with keys gathered, and hidden by a mask."""
    if kind not in zoo.kinds(key):
        pytest.skip("no videos beside pictures in this family")
    model = reduced.model(key)
    case = zoo.case(key, kind, model)
    plain = written(model, case.inputs)[1]
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        tokens, logits = written(model, case.inputs)
        trace = tr.trace(model)
        held = written(model, case.inputs, cache_implementation="static", disable_compile=True)
    for b, row in enumerate(tokens):
        assert apart(logits[b], oracle(key, case, trace, b, row)) < 1e-5
    assert torch.equal(held[0], tokens)
    assert apart(held[1], logits) < 1e-5
    seen = [b for b, row in enumerate(case.visuals) if row]
    assert (logits[seen, 1:] - plain[seen, 1:]).abs().max() > 1e-3
    assert torch.equal(logits[:, 0], plain[:, 0])


@pytest.mark.parametrize("key", ["llava", "qwen2_5_vl"])
def test_what_was_noted_follows_its_beam(key):
    """Beams of one sample attend differently; the best one's score is that of its tokens fed alone."""
    model = reduced.model(key)
    case = zoo.case(key, "equal", model)
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        out = model.generate(
            **case.inputs,
            max_new_tokens=8,
            min_new_tokens=8,
            num_beams=4,
            do_sample=False,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        trace = tr.trace(model)
    beams = out.beam_indices[:, :8] % 4
    assert any(row.unique().numel() > 1 for row in beams)
    for b, row in enumerate(out.sequences[:, case.inputs["input_ids"].shape[1] :]):
        steps = oracle(key, case, trace, b, row).log_softmax(dim=-1)
        score = steps.gather(1, row[:, None]).sum()
        assert abs(float(score - out.sequences_scores[b])) < 3e-5


def test_samples_that_are_drawn_read_what_each_attends_to():
    model = reduced.model("llava")
    case = zoo.case("llava", "equal", model)
    torch.manual_seed(0)
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        tokens, logits = written(model, case.inputs, do_sample=True, temperature=2.0, num_return_sequences=2)
        trace = tr.trace(model)
    assert not torch.equal(tokens[0], tokens[1])
    for row, (own, found) in enumerate(zip(tokens, logits)):
        assert apart(found, oracle("llava", case, trace, row // 2, own)) < 1e-5


@pytest.mark.parametrize("first", [tr.HiPrune(keep=0.5), tr.FastV(keep=0.5, layer=1), tr.FastV(keep=0.5, layer=3)])
def test_it_chooses_from_what_other_methods_left(first):
    """Among others in layer 3, which no longer holds all that layer 2 chooses from."""
    bare, model = reduced.model("llava", "eager"), reduced.model("llava")
    case = zoo.case("llava", "single", model)
    with tr.wrapped(model, first, ReadsSome(keep=KEEP)):
        tokens, logits = written(model, case.inputs)
        counts = tr.report(model).steps_read
        (columns,) = columns_of(case, tr.trace(model), 0)
    with tr.wrapped(bare, first):
        bare(**case.inputs)
        trace = tr.trace(bare)
        late = trace.kept_at.get(3)
        n = len(columns) if late is not None else len(trace.kept_at.get(1, trace.kept)[0])
        later = None
        if late is not None:
            left = torch.isin(columns, late[0])
            later = (3, [torch.where(left, left.cumsum(0) - 1 + columns[0], -1)])
        with decode_oracle.reading(bare, 2, [torch.arange(n) + columns[0]], some(), later):
            expected = decode_oracle.fed(bare, case.inputs, tokens[0])
    assert n == (16 if late is not None else 8)
    assert apart(logits[0], expected) < 1e-5
    assert counts.held == [n] * (STEPS - 1)
    assert counts.read == [round(KEEP * n)] * (STEPS - 1)


def test_the_report_counts_what_was_read():
    """Of one picture of 16 tokens, 5 in each step, in layers 2 and later."""
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        model(**inputs)
        assert not tr.report(model).steps_read.held
        assert "steps_read" not in tr.report(model).as_dict()
        written(model, inputs)
        report = tr.report(model)
        written(model, inputs, cache_implementation="static", disable_compile=True)
        hidden = tr.report(model)
    attention = decoder_of(model).layers[0].self_attn
    heads, width = attention.config.num_attention_heads, attention.head_dim
    length, layers = inputs["input_ids"].shape[1], len(decoder_of(model).layers)
    assert report.steps_read.held == [16] * (STEPS - 1)
    assert report.steps_read.read == hidden.steps_read.read == [5] * (STEPS - 1)
    step = report.by_stage["decode step"]
    assert step.flops_unreduced - step.flops == 4 * 11 * heads * width * (layers - 2)
    assert hidden.by_stage["decode step"].flops == step.flops_unreduced
    assert report.steps_read.signal_flops == [2 * (length + 1 + i) * heads * width for i in range(STEPS - 1)]
    assert report.steps_read.flops[1] - report.steps_read.flops[0] == 4 * heads * width * layers
    assert "31.2% of 64 in 4 step(s)" in str(report)
    assert report.as_dict()["steps_read"]["read"] == [5] * 4
