"""The zoo and its oracle against the unwrapped models: what the contracts of all families stand on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import zoo_oracle
from transformers import DynamicCache

from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of

EVERY = [(key, kind) for key in zoo.FAMILIES for kind in zoo.kinds(key)]
VARIANTS = {
    "aya_vision": {"window": 7},
    "gemma3": {"window": 7},
    "paligemma2": {"window": 7},
    "llava_onevision": {"vision_aspect_ratio": "anyres_max_1"},
}
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def models():
    made: dict = {}

    def get(key, attn="sdpa", **variant):
        name = (key, attn, *variant)
        if name not in made:
            made[name] = zoo.build(key, attn, **variant)
        return made[name]

    return get


def without_some(case: zoo.Case) -> list[torch.Tensor]:
    """Per sample all columns of text and every third visual one."""
    kept = []
    for real, visuals in zip(case.inputs["attention_mask"].bool(), case.visuals):
        stays = real.clone()
        for visual in visuals:
            stays[visual.columns] = False
            stays[visual.columns[1::3]] = True
        kept.append(stays.nonzero()[:, 0])
    return kept


@torch.no_grad()
def agrees(model, inputs, generate: bool) -> None:
    """The oracle with everything kept is the model itself."""
    bare = model(**inputs).logits
    for b, (columns, expected) in enumerate(zip(zoo_oracle.columns(model, inputs), zoo_oracle.logits(model, inputs))):
        torch.testing.assert_close(bare[b, columns], expected, atol=TOLERANCE, rtol=0)
    if generate:
        new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:].tolist()
        assert new == zoo_oracle.greedy(model, inputs, 4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(("key", "kind"), EVERY)
def test_the_oracle_that_keeps_everything_is_the_model(models, key, kind, attn):
    model = models(key, attn)
    agrees(model, zoo.inputs(key, kind, model), generate=kind != "right")  # written tokens would follow the padding


@pytest.mark.parametrize("key", VARIANTS)
def test_variants(models, key):
    model = models(key, **VARIANTS[key])
    for kind in ("single", "mixed"):
        agrees(model, zoo.inputs(key, kind, model), generate=True)


@pytest.mark.parametrize("key", zoo.FAMILIES)
def test_what_is_dropped_matters(models, key):
    """Each of the ways to drop, and of the positions, gives logits of its own."""
    model = models(key)
    case = zoo.case(key, "mixed", model)
    keep = without_some(case)
    some = {
        "all": zoo_oracle.logits(model, case.inputs),
        "door": zoo_oracle.logits(model, case.inputs, keep),
        "renumbered": zoo_oracle.logits(model, case.inputs, keep, positions="renumber"),
        "layer 1": zoo_oracle.logits(model, case.inputs, drop_at={1: keep}),
        "layer 3": zoo_oracle.logits(model, case.inputs, drop_at={3: keep}),
    }
    for b in (0, 1):
        last = [rows[b][-1] for rows in some.values()]
        for i, one in enumerate(last):
            for other in last[:i]:
                assert (one - other).abs().max() > 0.05
    for rows in some.values():  # a sample without pictures never changes
        torch.testing.assert_close(rows[2], some["all"][2], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(
        zoo_oracle.logits(model, case.inputs, drop_at={0: keep})[0], some["door"][0], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("key", zoo.FAMILIES)
def test_written_tokens_vary(models, key):
    model = models(key)
    tokens = zoo_oracle.greedy(model, zoo.inputs(key, "single", model), 8)[0]
    assert len(set(tokens)) > 2
    assert min(tokens) >= zoo.common.WORDS


@pytest.mark.parametrize("key", zoo.FAMILIES)
def test_a_changed_row_enters_in_place_of_the_bare_one(models, key):
    model = models(key)
    case = zoo.case(key, "single", model)

    def halved(b, row):
        return replace(row, embeds=row.embeds / 2)

    bare, same, changed = (
        zoo_oracle.logits(model, case.inputs, change=change)[0] for change in (None, lambda b, row: row, halved)
    )
    assert torch.equal(bare, same)
    assert (bare - changed)[-1].abs().max() > 0.05


@pytest.mark.parametrize("key", zoo.FAMILIES)
def test_a_second_turn_of_the_bare_model(models, key):
    """Two turns on one cache are one long prompt, for the model and for the oracle."""
    model, more = models(key), torch.tensor([[30, 31, 32, 33]])
    inputs = zoo.inputs(key, "mixed", model)
    more = more.expand(len(inputs["input_ids"]), -1)
    cache = DynamicCache(config=decoder_of(model).config)
    first = model.generate(**inputs, past_key_values=cache, max_new_tokens=3, do_sample=False)
    both = zoo.follow(key, inputs, torch.cat([first[:, -3:], more], dim=1))
    text = {name: both[name] for name in both if "pixel" not in name and "image" not in name}
    second = model.generate(**text, past_key_values=cache, max_new_tokens=3, do_sample=False)
    assert second[:, -3:].tolist() == zoo_oracle.greedy(model, both, 3)
