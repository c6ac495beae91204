"""Contracts 2 to 5: a wrapped model is the bare model on a physically shortened sequence, alone or in a batch."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt
from oracle import embeddings, greedy, run, shortened
from probe_methods import Backwards, MergeAt, Nothing, Ragged, Remembers, Summary

import tokenreduce as tr

STEPS = 4
TOLERANCE = 3e-5  # float32 logits of size 5; batched and single matrix products round differently

VARIANTS = {
    "clip-llama-sdpa": ("clip", "llama", "sdpa"),
    "clip-mistral-eager": ("clip", "mistral", "eager"),
    "siglip-qwen2-sdpa": ("siglip", "qwen2", "sdpa"),
    "clip_full-llama-eager": ("clip", "llama", "eager", 4, "full"),
    "siglip_default-qwen2-sdpa": ("siglip", "qwen2", "sdpa", 4, "default"),
}
METHODS = {
    "fastervlm": lambda cls: (tr.FasterVLM(keep=5, score="cls" if cls else "global_mean"),),
    "hiprune": lambda cls: (tr.HiPrune(keep=6, alpha=0.5),),
    "fastv": lambda cls: (tr.FastV(keep=3),),
    "fastv-all": lambda cls: (tr.FastV(keep=0.5, query="all", layer=1),),
    "pyramiddrop": lambda cls: (tr.PyramidDrop(keep=0.4),),
    "promptdistill": lambda cls: (tr.PromptDistill(keep=4, layers=(0, 2), pool="grid3"),),
    "random": lambda cls: (tr.Random(keep=5),),
    "uniform": lambda cls: (tr.Uniform(keep=5),),
    "pool": lambda cls: (tr.Pool(keep=5),),
    "hiprune+fastv": lambda cls: (tr.HiPrune(keep=8), tr.FastV(keep=0.5, layer=3)),
    "fastv+fastv": lambda cls: (tr.FastV(keep=9, layer=1), tr.FastV(keep=4, layer=3)),
    "merge": lambda cls: (MergeAt(),),
    "backwards": lambda cls: (Backwards(),),
    "summary": lambda cls: (Summary(keep=6),),
    "ragged": lambda cls: (Ragged(),),
    "ragged-llm": lambda cls: (Ragged(layer=2),),
    "nothing": lambda cls: (Nothing(),),
    "nothing-llm": lambda cls: (Nothing(layer=2),),
    "nothing of some": lambda cls: (Nothing(every=False), tr.FastV(keep=3, layer=3)),
    "notes": lambda cls: (Remembers(keep=0.3), tr.FastV(keep=0.7, layer=2)),
    "backwards+ragged-llm": lambda cls: (Backwards(), Ragged(layer=2)),
}
BATCHES = {
    "one": ([1], None),
    "two_images": ([2], None),
    "left": ([1, 0, 2], "left"),
    "right": ([1, 0, 2], "right"),
    "text_only": ([0, 0], "left"),
}


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return llava(*VARIANTS[request.param])


def has_cls(model) -> bool:
    return model.config.vision_config.model_type == "clip_vision_model"


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("methods", METHODS)
def test_forward_equals_the_shortened_bare_model(model, methods, batch):
    inputs = prompt(model, *BATCHES[batch])
    bare = embeddings(model, inputs)
    with tr.wrapped(model, *METHODS[methods](has_cls(model))), torch.no_grad():
        logits = model(**inputs).logits
        trace = tr.trace(model)
    for b in range(len(bare)):
        embeds, ids, keep_at = shortened(inputs, b, bare, trace)
        expected = run(model, embeds, ids, keep_at)
        left = torch.ones(len(embeds), dtype=torch.bool)
        for stays in keep_at.values():
            left &= stays
        columns = (inputs["attention_mask"][b].bool() & ~dropped(inputs, trace, b)).nonzero().flatten()[left]
        torch.testing.assert_close(logits[b, columns], expected, atol=TOLERANCE, rtol=0)
        # a dropped column repeats the last living one before it
        for column in range(int(columns[0]), logits.shape[1]):
            before = int(columns[columns <= column].max())
            assert torch.equal(logits[b, column], logits[b, before])


def dropped(inputs, trace, b):
    gone = inputs["input_ids"][b] == IMAGE_TOKEN
    gone[trace.kept[b]] = False
    return gone


@pytest.mark.parametrize("batch", ["one", "two_images", "left", "text_only"])
@pytest.mark.parametrize("methods", METHODS)
def test_generate_equals_the_shortened_bare_model(model, methods, batch):
    inputs = prompt(model, *BATCHES[batch])
    bare = embeddings(model, inputs)
    with tr.wrapped(model, *METHODS[methods](has_cls(model))):
        cached = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
        trace = tr.trace(model)
        uncached = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, use_cache=False)[:, -STEPS:]
    for b in range(len(bare)):
        embeds, ids, keep_at = shortened(inputs, b, bare, trace, generate=True)
        expected = greedy(model, embeds, ids, STEPS, keep_at)
        assert cached[b].tolist() == expected
        assert uncached[b].tolist() == expected


@pytest.mark.parametrize("methods", METHODS)
def test_right_padding_when_the_longest_row_is_text(model, methods):
    """The longest row is not shortened, so the width stays; the others are."""
    inputs = prompt(model, [1, 0], "right")
    long = torch.randint(4, 60, (1, inputs["input_ids"].shape[1] + 9), generator=torch.Generator().manual_seed(3))
    ids, mask = torch.zeros(2, long.shape[1], dtype=torch.long), torch.zeros(2, long.shape[1], dtype=torch.long)
    ids[0, : inputs["input_ids"].shape[1]], mask[0, : inputs["input_ids"].shape[1]] = inputs["input_ids"][0], 1
    mask[0] *= ids[0] != 0
    ids[1], mask[1] = long[0], 1
    inputs = {**inputs, "input_ids": ids, "attention_mask": mask}
    bare = embeddings(model, inputs)
    with tr.wrapped(model, *METHODS[methods](has_cls(model))), torch.no_grad():
        logits, trace = model(**inputs).logits, tr.trace(model)
    for b in range(2):
        embeds, positions, keep_at = shortened(inputs, b, bare, trace)
        last = int(mask[b].nonzero()[-1])
        expected = run(model, embeds, positions, keep_at)
        torch.testing.assert_close(logits[b, last], expected[-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("methods", METHODS)
def test_a_batch_equals_its_samples(model, methods, pad):
    inputs = prompt(model, [1, 0, 2, 1], pad)
    images = [1, 0, 2, 1]
    with tr.wrapped(model, *METHODS[methods](has_cls(model))), torch.no_grad():
        together, trace = model(**inputs).logits, tr.trace(model)
        report = tr.report(model)
        first = 0
        for b, count in enumerate(images):
            real = inputs["attention_mask"][b].bool()
            alone = {"input_ids": inputs["input_ids"][b][real][None], "attention_mask": torch.ones(1, int(real.sum()))}
            offset = int(real.nonzero()[0])
            alone["position_ids"] = (torch.arange(int(real.sum())) + offset)[None]
            if count:
                alone["pixel_values"] = inputs["pixel_values"][first : first + count]
            first += count
            single = model(**alone).logits
            torch.testing.assert_close(together[b][real], single[0], atol=TOLERANCE, rtol=0)
            assert torch.equal(tr.trace(model).kept[0] + offset, trace.kept[b])
            assert tr.report(model).tokens_kept[0] == report.tokens_kept[b]


def test_the_oracle_can_fail(model):
    """Negative control: other survivors, or other positions, move logits far beyond the tolerance."""
    inputs = prompt(model, [1])
    bare = embeddings(model, inputs)
    with tr.wrapped(model, "uniform", keep=5), torch.no_grad():
        logits = model(**inputs).logits
        trace = tr.trace(model)
    embeds, ids, _ = shortened(inputs, 0, bare, trace)
    assert (run(model, embeds, ids)[-1] - logits[0, -1]).abs().max() < TOLERANCE
    assert (run(model, embeds, torch.arange(len(ids)))[-1] - logits[0, -1]).abs().max() > 100 * TOLERANCE
    with tr.wrapped(model, "random", keep=5), torch.no_grad():
        model(**inputs)
        embeds, ids, _ = shortened(inputs, 0, bare, tr.trace(model))
    assert (run(model, embeds, ids)[-1] - logits[0, -1]).abs().max() > 100 * TOLERANCE
