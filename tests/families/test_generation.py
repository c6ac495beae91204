"""Contract 5 on every family: every way to write gives the tokens that the plain way gives."""

from __future__ import annotations

import pytest
import reduced
import torch
from models import TRANSFORMERS

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

BOTH = (tr.HiPrune(keep=0.6), tr.FastV(keep=0.5, layer=1))


def moving(key: str, rows: int = 1) -> str:
    """The kind of prompt that exercises most of a family, to be written on in so many rows per sample."""
    if rows > 1 and TRANSFORMERS < (5, 18):  # pictures were repeated one by one then, not sample by sample
        return "equal"
    return "videos" if "videos" in zoo.kinds(key) else "mixed"


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_beams_equal_beams_one_by_one(key):
    model = reduced.model(key)
    case = zoo.case(key, moving(key, 3), model)
    together, trace = reduced.write(model, case.inputs, *BOTH, num_beams=3)
    for b, tokens in enumerate(together):
        alone, own = reduced.write(model, zoo.alone(key, case, b), *BOTH, num_beams=3)
        assert alone == [tokens]
        if TRANSFORMERS >= (5, 18):  # before, images were repeated before they were encoded
            start = int(case.inputs["attention_mask"][b].argmax())
            assert torch.equal(own.kept_at[1][0] + start, trace.kept_at[1][b])


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_sampling(key):
    """From the single likeliest token it is greedy; with a seed it can be repeated; rows of a sample share what was kept."""
    model = reduced.model(key)
    inputs = zoo.inputs(key, moving(key, 2), model)
    greedy, _ = reduced.write(model, inputs, *BOTH)
    sampled, trace = reduced.write(model, inputs, *BOTH, do_sample=True, top_k=1, num_return_sequences=2)
    assert sampled == [row for row in greedy for _ in range(2)]
    assert len(trace.kept) == len(greedy) * (1 if TRANSFORMERS >= (5, 18) else 2)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(reduced.write(model, inputs, *BOTH, do_sample=True, temperature=2.0)[0])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_prompt_lookup(key):
    """Methods that rank by the text may see proposals, which come along with the prompt when it repeats itself."""
    model = reduced.model(key)
    if key == "qwen3_5":  # a recurrent state cannot forget a proposal
        with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
            model.generate(**zoo.inputs(key, "single", model), max_new_tokens=2, prompt_lookup_num_tokens=2)
        return
    for kind, methods in [("single", BOTH)] + [("video", BOTH[:1])] * (key in reduced.VIDEO):
        inputs = zoo.inputs(key, kind, model)
        greedy, _ = reduced.write(model, inputs, *methods, steps=6)
        assert reduced.write(model, inputs, *methods, steps=6, prompt_lookup_num_tokens=2)[0] == greedy


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_a_static_cache(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, moving(key), model)
    static = {"cache_implementation": "static", "disable_compile": True}
    if key == "paligemma2":  # not by our doing
        with pytest.raises(AttributeError, match="'dict' object has no attribute 'ndim'"):
            model.generate(**inputs, max_new_tokens=2, **static)
        return
    greedy, _ = reduced.write(model, inputs, *BOTH)
    assert reduced.write(model, inputs, *BOTH, **static)[0] == greedy


@pytest.mark.parametrize("key", ["llava", "video_llava", "qwen2_vl", "qwen2_5_vl", "internvl"])
def test_a_prompt_that_comes_in_chunks(key):
    """Each chunk shows the pictures that follow those of the chunks before."""
    if TRANSFORMERS < (5, 23):
        pytest.skip("transformers before 5.23 does not run pictures in chunks rightly")
    model = reduced.model(key)
    case = zoo.case(key, "mixed", model)
    inputs = zoo.alone(key, case, 1)
    padding = int((case.inputs["attention_mask"][1] == 0).sum())
    first, second = ([int(c) - padding for c in visual.columns] for visual in case.visuals[1])
    size = second[0]  # the first chunk ends before the second picture
    assert first[-1] < size <= second[-1] < 2 * size
    whole, _ = reduced.write(model, inputs, *BOTH[:1])
    assert reduced.write(model, inputs, *BOTH[:1], prefill_chunk_size=size)[0] == whole
    with pytest.raises(ValueError, match=r"one piece.*prefill_chunk_size"):
        reduced.write(model, inputs, *BOTH[:1], prefill_chunk_size=first[-1] - 2)
