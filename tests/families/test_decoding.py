"""Stage ``decode``: what new tokens do not read is as if it were not in the cache, and may be read again."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import decode_oracle
import pytest
import reduced
import torch
from models import TRANSFORMERS
from probe_methods import ReadsSome
from transformers import DynamicCache

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of

KEEP = 0.3
STEPS = 5
FAMILIES = ["llava", "qwen2_5_vl", "internvl", "llava_onevision", "gemma3", "qwen3_vl", "smolvlm"]


def some(keep: float = KEEP):
    """The rule of ``ReadsSome`` once more, for the oracle."""
    masses: dict[int, torch.Tensor] = {}

    def rule(rows):
        reads = []
        for i, row in enumerate(rows):
            mass = 2 * row + masses.get(i, 0)
            masses[i] = mass / 2
            order = sorted(range(len(row)), key=lambda n, mass=mass: (-float(mass[n]), n))
            reads.append(torch.isin(torch.arange(len(row)), torch.tensor(order[: round(keep * len(row))])))
        return reads

    return rule


def written(model, inputs: dict, **how):
    """Tokens (B, T) behind the prompt, and logits (B, T, V) in front of them."""
    how = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, **how}
    out = model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **how)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def columns_of(case: zoo.Case, trace: tr.Trace, b: int) -> list[torch.Tensor]:
    """The columns of each picture of sample ``b`` run alone."""
    padding = int(case.inputs["attention_mask"][b].int().argmax())
    return [image.columns - padding for image in trace.images if image.sample == b]


def oracle(key: str, case: zoo.Case, trace: tr.Trace, b: int, tokens: torch.Tensor) -> torch.Tensor:
    """(T, V) logits in front of ``tokens`` (T,) written to sample ``b``."""
    bare = reduced.model(key, "eager")
    with decode_oracle.reading(bare, 2, columns_of(case, trace, b), some()) as steps:
        found = decode_oracle.fed(bare, zoo.alone(key, case, b), tokens)
    assert len(steps) == len(tokens) - 1
    return found


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in units of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


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


def step(model, cache, inputs: dict, token: int, length: int):
    """Logits (V,) behind one more ``token``, the prompt with what was written being ``length`` columns long."""
    given = {"input_ids": torch.tensor([[token]]), "attention_mask": torch.ones(1, length + 1, dtype=torch.long)}
    return model(**given, past_key_values=cache, use_cache=True).logits[0, -1]


@torch.no_grad()
def prompted(model, inputs: dict):
    cache = DynamicCache(config=decoder_of(model).config)
    model(**inputs, past_key_values=cache)
    return cache


@torch.no_grad()
def test_single_tokens_passed_by_hand_choose_and_several_at_once_read_everything():
    model = reduced.model("llava")
    case = zoo.case("llava", "single", model)
    length = case.inputs["input_ids"].shape[1]
    tokens = torch.tensor([30, 31, 32])
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        cache = prompted(model, case.inputs)
        by_hand = [step(model, cache, case.inputs, int(t), length + i) for i, t in enumerate(tokens)]
        trace = tr.trace(model)
        at_once = prompted(model, case.inputs)
        mask = torch.ones(1, length + 3, dtype=torch.long)
        whole = model(input_ids=tokens[None], attention_mask=mask, past_key_values=at_once).logits[0]
    expected = oracle("llava", case, trace, 0, torch.cat([tokens, torch.tensor([1])]))[1:]
    assert apart(torch.stack(by_hand), expected) < 1e-5
    bare = prompted(model, case.inputs)
    assert apart(whole, model(input_ids=tokens[None], attention_mask=mask, past_key_values=bare).logits[0]) < 1e-5
    assert cache.layers[-1].keys.shape[2] == length + 3


def test_a_second_turn_begins_anew():
    """What was noted of the first answer is of another question; the second one reads pictures of both turns."""
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    length, question = inputs["input_ids"].shape[1], torch.tensor([[30, 31, 32, 33]])
    cache = DynamicCache(config=decoder_of(model).config)
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        first = model.generate(**inputs, past_key_values=cache, max_new_tokens=3, do_sample=False)
        both = zoo.follow("llava", inputs, torch.cat([first[:, length:], question], dim=1))
        text = {name: both[name] for name in ("input_ids", "attention_mask")}
        tokens, logits = written(model, text, past_key_values=cache)
        read = tr.report(model).steps_read.read
        (picture,) = [image.columns for image in tr.trace(model).images]
    assert len(read) == 2 + STEPS - 1
    bare = reduced.model("llava", "eager")
    held = DynamicCache(config=decoder_of(bare).config)
    with decode_oracle.reading(bare, 2, [picture], some()):
        bare.generate(**inputs, past_key_values=held, max_new_tokens=3, do_sample=False)
    with decode_oracle.reading(bare, 2, [picture], some()):
        expected = decode_oracle.fed(bare, {**text, "past_key_values": held}, tokens[0])
    assert apart(logits[0], expected) < 1e-5


@torch.no_grad()
def test_a_cropped_cache_forgets_what_was_noted():
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    length = inputs["input_ids"].shape[1]
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        cache = prompted(model, inputs)
        fresh = step(model, cache, inputs, 40, length)
        for token in (41, 42):
            step(model, cache, inputs, token, length + token - 40)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        assert torch.equal(step(model, cache, inputs, 40, length), fresh)
        for layer in cache.layers:  # into the picture
            layer.keys, layer.values = layer.keys[:, :, :10], layer.values[:, :, :10]
        cut = step(model, cache, inputs, 40, 10)
    bare = prompted(model, inputs)
    for layer in bare.layers:
        layer.keys, layer.values = layer.keys[:, :, :10], layer.values[:, :, :10]
    assert torch.equal(cut, step(model, bare, inputs, 40, 10))


@torch.no_grad()
def test_unwrapped_in_the_middle_the_model_reads_everything_again():
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    length = inputs["input_ids"].shape[1]
    plain = prompted(model, inputs)
    first, second = (step(model, plain, inputs, 40 + i, length + i) for i in range(2))
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        cache = prompted(model, inputs)
    assert torch.equal(step(model, cache, inputs, 40, length), first)
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        assert apart(step(copy.deepcopy(model), copy.deepcopy(cache), inputs, 41, length + 1), second) > 1e-3
        with tr.budget(model, 1.0):
            assert torch.equal(step(model, cache, inputs, 41, length + 1), second)


def test_threads_note_by_themselves():
    model = reduced.model("llava")
    case = zoo.case("llava", "equal", model)
    samples = [zoo.alone("llava", case, b) for b in range(2)] * 2
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        expected = [written(model, sample)[1] for sample in samples]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda sample: written(model, sample)[1], samples))
    assert all(map(torch.equal, found, expected))


def test_a_prompt_in_chunks():
    if TRANSFORMERS < (5, 23):
        pytest.skip("transformers before 5.23 does not run pictures in chunks rightly")
    model = reduced.model("qwen2_5_vl")
    case = zoo.case("qwen2_5_vl", "single", model)
    size = int(case.visuals[0][0].columns[-1]) + 2
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        whole = written(model, case.inputs)
        assert apart(written(model, case.inputs, prefill_chunk_size=size)[1], whole[1]) < 1e-5
        assert apart(whole[1][0], oracle("qwen2_5_vl", case, tr.trace(model), 0, whole[0][0])) < 1e-5


def test_what_cannot_be_chosen_token_by_token_is_refused():
    model = reduced.model("llava")
    inputs, text = (zoo.inputs("llava", kind, model) for kind in ("single", "text"))
    repeated = zoo.follow("llava", inputs, torch.tensor([[30, 31, 32, 30, 31, 32, 30, 31]]))
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        with pytest.raises(ValueError, match=r"reads_some.*token by token.*prompt_lookup_num_tokens"):
            model.generate(**repeated, max_new_tokens=4, do_sample=False, prompt_lookup_num_tokens=3)
        with pytest.raises(ValueError, match=r"use_cache=False.*reads_some"):
            model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
        for how in ({"use_cache": False}, {"prompt_lookup_num_tokens": 3}):  # no pictures, nothing to choose
            one = {name: x[:1] for name, x in text.items()}
            model.generate(**one, max_new_tokens=4, do_sample=False, **how)


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
