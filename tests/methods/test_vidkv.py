"""VidKV: a cache of few bits that reads as formulas say, row by row, beside every other way of going on with a cache."""

from __future__ import annotations

import copy

import pytest
import torch
from models import IMAGE_TOKEN, TRANSFORMERS, VOCAB, llava, prompt
from transformers import DynamicCache, StaticCache

import tokenreduce as tr
from tokenreduce.adapters.hooks.coded_cache import CodedLayer

GROUP, SMALL = 4, {"group": 4, "residual": 8}
TOLERANCE = 3e-5
ROUNDED = 2e-3  # where the last bit of a scale of 16 bits, 5e-4 of it, falls the other way
#: alone, and behind a reduction in front of, inside of and behind the language model
METHODS = {
    "alone": lambda: (tr.VidKV(**SMALL),),
    "unprotected": lambda: (tr.VidKV(protect=0.0, key_bits=1.0, **SMALL),),
    "projector": lambda: (tr.VidKV(**SMALL), tr.HiPrune(keep=9)),
    "llm": lambda: (tr.FastV(keep=9, layer=2), tr.VidKV(**SMALL)),
    "cache": lambda: (tr.MustDrop(keep=6, window=2), tr.VidKV(**SMALL)),
    "merged": lambda: (tr.ToMe(keep=8), tr.VidKV(**SMALL)),
}


@pytest.fixture(scope="module")
def model():
    return llava("clip", "llama", "sdpa")


def layers(cache):
    return [layer for layer in cache.layers if isinstance(layer, CodedLayer)]


# ---------------------------------------------------------------------- numbers


def by_formula(x, code):
    """``x`` (H, n, d), group by group and channel by channel."""
    out = x.clone()
    for start in range(0, x.shape[1], GROUP):
        for index in ((h, slice(start, start + GROUP), c) for h in range(len(x)) for c in range(x.shape[2])):
            own, scale = x[index], x[index].abs().mean()
            if code == 2:
                step = (own.max() - own.min()) / 3
                out[index] = torch.round((own - own.min()) / step) * step + own.min() if step > 0 else own
            else:
                cut = scale / 2 if code == 3 else 0
                out[index] = torch.where(
                    own >= cut if code == 1 else own > cut, scale, torch.where(own < -cut, -scale, 0)
                )
    return out


def expected_keys(x):
    """(H, n, d) of one row: half of the channels as they are, the others by all of their Fourier coefficients."""
    spread = x.amax(dim=(0, 1)) - x.amin(dim=(0, 1))
    hard = spread.argsort(descending=True)[: x.shape[2] // 2].sort().values
    soft = torch.tensor([c for c in range(x.shape[2]) if c not in hard])
    waves = torch.fft.fft(x[..., soft], dim=-1)
    out = x.clone()
    out[..., hard] = by_formula(x[..., hard], 2)
    sides = [by_formula(part, 1) for part in (waves.real, waves.imag)]
    sides[1][..., [0, len(soft) // 2]] = 0  # zero, whatever rounding makes of them
    out[..., soft] = torch.fft.ifft(torch.complex(*sides), dim=-1).real
    return out


def exact_and_held(model, inputs):
    """The cache of ``inputs`` as it comes, as VidKV holds it, and the trace of that."""
    with torch.no_grad():
        exact = model(**inputs).past_key_values
        with tr.wrapped(model, tr.VidKV(**SMALL)):
            return exact, model(**inputs).past_key_values, tr.trace(model)


def test_a_cache_holds_what_the_formulas_say(model):
    """Row by row: whole groups of its real tokens, of values those of the protected ones and of the others apart."""
    inputs = prompt(model, [1, 2], "left")
    exact, held, trace = exact_and_held(model, inputs)
    assert len(layers(held)) == 5
    for layer, bare in zip(held.layers, exact.layers, strict=True):
        keys, values = (
            layer._whole(*given) for given in ((layer.keys, layer.key_parts), (layer.values, layer.value_parts))
        )
        for b in range(2):
            real = inputs["attention_mask"][b].nonzero().flatten()
            coded, left = real[: len(real) // GROUP * GROUP], real[len(real) // GROUP * GROUP :]
            pictures = [image for image in trace.images if image.sample == b]
            marked = torch.cat([image.columns[image.stages[-1].role.flatten() == 1] for image in pictures])
            assert len(marked) == len(pictures) * GROUP
            special = torch.isin(coded, marked)
            torch.testing.assert_close(
                keys[b][:, coded], expected_keys(bare.keys[b][:, coded]), atol=ROUNDED, rtol=ROUNDED
            )
            for side, code in ((special, 2), (~special, 3)):
                at = coded[side]
                whole = at[: len(at) // GROUP * GROUP]
                torch.testing.assert_close(
                    values[b][:, whole], by_formula(bare.values[b][:, whole], code), atol=ROUNDED, rtol=ROUNDED
                )
            assert torch.equal(keys[b][:, left], bare.keys[b][:, left])
            assert torch.equal(values[b][:, left], bare.values[b][:, left])


# ---------------------------------------------------------------------- going on with the cache


def answer(model, inputs, steps=12, **more):
    return model.generate(**inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, **more)[:, -steps:]


def alone(inputs, b, first):
    real, count = inputs["attention_mask"][b].bool(), (1, 2)[b]
    return {
        "input_ids": inputs["input_ids"][b][real][None],
        "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long),
        "pixel_values": inputs["pixel_values"][first : first + count],
    }


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("methods", METHODS)
def test_a_padded_batch_equals_its_samples_while_more_is_coded(model, methods, beams):
    inputs = prompt(model, [1, 2], "left")
    with tr.wrapped(model, *METHODS[methods]()):
        together = answer(model, inputs, num_beams=beams)
        for b in range(2):
            assert answer(model, alone(inputs, b, b), num_beams=beams)[0].tolist() == together[b].tolist()


def test_fewer_bytes_and_fewer_tokens_are_told_as_they_are(model):
    inputs = prompt(model, [2], "left")
    told = {}
    for name in ("alone", "projector", "llm", "merged"):
        with tr.wrapped(model, *METHODS[name]()), torch.no_grad():
            cache = model(**inputs).past_key_values
            told[name] = tr.report(model)
        seen = {id(x): x for layer in cache.layers for x in (layer.keys, layer.values, *layer.coded_tensors())}
        assert told[name].kv_bytes == sum(x.numel() * x.element_size() for x in seen.values())
    assert told["alone"].tokens_kept == told["alone"].tokens_in
    assert told["alone"].kv_bytes < told["alone"].kv_bytes_unreduced
    assert max(told[name].kv_bytes for name in ("projector", "llm", "merged")) < told["alone"].kv_bytes


def step(model, cache, mask, ids):
    mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], dim=1)
    with torch.no_grad():
        return model(input_ids=torch.tensor([[i] for i in ids]), attention_mask=mask, past_key_values=cache).logits


@pytest.mark.parametrize("methods", METHODS)
def test_rows_can_be_selected_repeated_and_copied(model, methods):
    inputs = prompt(model, [1, 2], "left")
    with tr.wrapped(model, *METHODS[methods]()), torch.no_grad():
        cache, mask = model(**inputs).past_key_values, inputs["attention_mask"]
        expected = step(model, copy.deepcopy(cache), mask, (7, 9))
        one, twice = copy.deepcopy(cache), copy.deepcopy(cache)
        one.batch_select_indices(torch.tensor([1]))
        torch.testing.assert_close(step(model, one, mask[1:], (9,))[0], expected[1], atol=TOLERANCE, rtol=0)
        twice.batch_repeat_interleave(2)
        got = step(model, twice, mask.repeat_interleave(2, 0), (7, 7, 9, 9))
        torch.testing.assert_close(got[::2], expected, atol=TOLERANCE, rtol=0)


def test_a_crop_forgets_what_was_written_and_refuses_what_is_coded(model):
    inputs = prompt(model, [1])
    length = inputs["input_ids"].shape[1]
    with tr.wrapped(model, tr.VidKV(**SMALL)), torch.no_grad():
        cache, mask = model(**inputs).past_key_values, inputs["attention_mask"]
        expected = step(model, copy.deepcopy(cache), mask, (7,))
        for token in (9, 11):
            step(model, cache, mask, (token,))
            mask = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], dim=1)
        cache.crop(-2)
        again = step(model, cache, inputs["attention_mask"], (7,))
        torch.testing.assert_close(again, expected, atol=TOLERANCE, rtol=0)
        assert length % GROUP
        with pytest.raises(ValueError, match=rf"those before {length // GROUP * GROUP} are held in few bits"):
            cache.crop(-(1 + length % GROUP + 1))


@pytest.mark.parametrize("methods", METHODS)
def test_second_turns_go_on_with_text_and_with_pictures(model, methods):
    """The same in a batch of unlike rows as in each row alone, at the positions it has there."""
    one, two = prompt(model, [1, 2], "left"), prompt(model, [1, 2], "left", seed=5)
    ids = torch.randint(4, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def turns(row=None):
        cache, masks, length = DynamicCache(config=model.get_decoder().config), [], 0
        for given in (one, text, two, text):
            real = given["attention_mask"]
            if row is not None:
                columns = real[row].nonzero().flatten()
                given = {**given, "input_ids": given["input_ids"][row, columns][None]}
                given["position_ids"], length = columns[None] + length, length + real.shape[1]
                if "pixel_values" in given:
                    given["pixel_values"] = given["pixel_values"][row : 2 * row + 1]
                real = torch.ones_like(given["input_ids"])
            masks.append(real)
            given = {**given, "attention_mask": torch.cat(masks, dim=1)}
            last = model(**given, past_key_values=cache).logits[:, -1]
        assert all(len(layer.key_parts) > 2 for layer in layers(cache))
        return last

    with tr.wrapped(model, *METHODS[methods]()), torch.no_grad():
        together = turns()
        for b in range(2):
            torch.testing.assert_close(turns(b)[0], together[b], atol=ROUNDED, rtol=0)


def test_what_was_coded_once_is_not_coded_again(model):
    inputs = prompt(model, [1])
    with tr.wrapped(model, tr.VidKV(**SMALL)), torch.no_grad():
        cache, mask = model(**inputs).past_key_values, inputs["attention_mask"]
        before = [layer.key_parts[0].coded.numbers() for layer in layers(cache)]
        for _ in range(10):
            step(model, cache, mask, (7,))
            mask = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], dim=1)
        assert [len(layer.key_parts) for layer in layers(cache)] == [2] * 5
        assert all(
            torch.equal(a, layer.key_parts[0].coded.numbers()) for a, layer in zip(before, layers(cache), strict=True)
        )


def test_rows_without_a_picture_stay_exact(model):
    inputs = prompt(model, [1, 0], "left")
    exact, held, _ = exact_and_held(model, inputs)
    for layer, bare in zip(held.layers, exact.layers, strict=True):
        real = inputs["attention_mask"][1].bool()
        assert torch.equal(layer._whole(layer.keys, layer.key_parts)[1, :, real], bare.keys[1, :, real])


def test_guesses_are_refused_unless_what_is_written_stays_exact(model):
    inputs = prompt(model, [1])
    refused = pytest.raises(ValueError, match=r"several tokens of an answer at once.*residual=None")
    with tr.wrapped(model, tr.VidKV(**SMALL)), refused:
        answer(model, inputs, prompt_lookup_num_tokens=2)
    with tr.wrapped(model, tr.VidKV(group=4, residual=None)):
        assert torch.equal(answer(model, inputs, prompt_lookup_num_tokens=2), answer(model, inputs))


def test_what_cannot_be_coded_is_refused_in_words(model):
    inputs = prompt(model, [1])
    with tr.wrapped(model, tr.VidKV(**SMALL)):
        with torch.no_grad(), pytest.raises(ValueError, match=r"StaticLayer cannot be held in few bits.*DynamicCache"):
            model(**inputs, past_key_values=StaticCache(config=model.get_decoder().config, max_cache_len=80))
        with pytest.raises(ValueError, match=r"use_cache=False.*'vidkv'"):
            answer(model, inputs, use_cache=False)
    with pytest.raises(ValueError, match=r"methods=\['vidkv', 'vidkv'\] hold the cache"):
        tr.wrap(model, tr.VidKV(), tr.VidKV())


@pytest.mark.skipif(TRANSFORMERS < (5, 23), reason="before 5.23 chunked prefill does not handle images at all")
@pytest.mark.parametrize(("protect", "words"), [(0.2, "reads the text"), (0.0, "in few bits behind the prompt")])
def test_a_prompt_that_goes_on_behind_its_picture_is_refused(model, protect, words):
    inputs = prompt(model, [1])
    size = int((inputs["input_ids"] == IMAGE_TOKEN).nonzero()[-1, 1]) + 1
    refused = pytest.raises(ValueError, match=rf"{words}.*prefill_chunk_size")
    with tr.wrapped(model, tr.VidKV(protect=protect)), refused:
        answer(model, inputs, prefill_chunk_size=size)


def test_a_budget_for_all_leaves_the_bits_alone_and_none_is_off(model):
    inputs = prompt(model, [1])
    with torch.no_grad():
        plain = answer(model, inputs)
    with tr.wrapped(model, tr.HiPrune(keep=9), tr.VidKV(**SMALL)):
        with tr.budget(model, keep=4):
            answer(model, inputs)
            assert tr.report(model).tokens_kept == [[4]]
            assert tr.report(model).kv_bytes < tr.report(model).kv_bytes_unreduced
        with tr.budget(model, keep=None):
            assert torch.equal(answer(model, inputs), plain)
            assert tr.report(model).kv_bytes == tr.report(model).kv_bytes_unreduced
