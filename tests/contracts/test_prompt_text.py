"""What the text of a prompt is, call by call: beams, answers, turns, chunks, packed rows, embeddings, no text at all."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt, tokens_per_image
from prompt_readers import reader
from transformers import DynamicCache

import tokenreduce as tr
from tokenreduce.signals import Text

SPANS = ("after", "before", "all", "last")


@pytest.fixture(scope="module")
def model():
    return llava()


def ids_of(model, rows, i):
    """Ids whose embeddings ``rows`` holds for picture ``i``."""
    table = model.get_input_embeddings().weight
    found = rows.features[i][rows.valid[i]]
    return [int((table == row).all(dim=1).nonzero()[0]) for row in found]


def read(model, run, *needs, stage="projector"):
    """What was shown of the pictures of a call: ``VisualTokens``, one after another."""
    method, seen = reader(stage, *(needs or map(Text, SPANS)))
    with tr.wrapped(model, method), torch.no_grad():
        run(model)
    return seen


def around(row):
    """Text of ``row`` (a list of ids) after, before and around its first picture."""
    first = row.index(IMAGE_TOKEN)
    last = len(row) - 1 - row[::-1].index(IMAGE_TOKEN)
    whole = [i for i in row if i != IMAGE_TOKEN]
    return {"after": row[last + 1 :], "before": row[:first], "all": whole, "last": whole[-1:]}


def check(model, tokens, rows):
    for span in SPANS:
        shown = tokens.signals[Text(span)]
        for i, row in enumerate(rows):
            assert ids_of(model, shown, i) == around(row)[span], span


def real(inputs, b):
    return inputs["input_ids"][b][inputs["attention_mask"][b].bool()].tolist()


@pytest.mark.parametrize(("side", "beams"), [("left", 1), ("left", 2), ("right", 1)])
def test_every_sample_has_its_own_text(model, side, beams):
    inputs = prompt(model, [1, 1, 1], side)
    options = {"max_new_tokens": 2, "do_sample": False, "num_beams": beams}
    run = (lambda m: m(**inputs)) if side == "right" else (lambda m: m.generate(**inputs, **options))
    (tokens,) = read(model, run)
    check(model, tokens, [real(inputs, b) for b in range(3) for _ in range(beams)])


@pytest.mark.parametrize("told_by", ["labels", "prompt_length", "generate without a cache"])
def test_an_answer_is_not_part_of_the_question(model, told_by):
    inputs = prompt(model, [1, 1], "left")
    question = [real(inputs, b) for b in range(2)]
    answer = torch.full((2, 4), 11)
    whole = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], answer], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1),
    }
    if told_by == "labels":
        labels = torch.full_like(whole["input_ids"], -100)
        labels[:, -4:] = answer
        seen = read(model, lambda m: m(**whole, labels=labels))
    elif told_by == "prompt_length":
        seen = read(model, lambda m: m(**whole, prompt_length=inputs["input_ids"].shape[1]))
    else:
        seen = read(model, lambda m: m.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False))
    assert len(seen) == 1, "decided once for a prompt"
    check(model, seen[0], question)


def test_a_picture_of_a_later_turn_has_the_text_of_that_turn(model):
    first, second = prompt(model, [1]), prompt(model, [1], seed=1)
    cache = DynamicCache(config=model.get_decoder().config)

    def turns(m):
        m(**first, past_key_values=cache, use_cache=True)
        length = first["input_ids"].shape[1] + second["input_ids"].shape[1]
        m(**{**second, "attention_mask": torch.ones(1, length)}, past_key_values=cache, use_cache=True)

    before, after = read(model, turns)
    check(model, before, [real(first, 0)])
    check(model, after, [real(second, 0)])


def test_text_without_anything_behind_the_picture(model):
    n = tokens_per_image(model)
    inputs = prompt(model, [1])
    inputs["input_ids"] = torch.tensor([[1, 20, 21, 22] + [IMAGE_TOKEN] * n])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    (tokens,) = read(model, lambda m: m(**inputs))
    check(model, tokens, [real(inputs, 0)])
    assert tokens.signals[Text("after")].features.shape[1] == 0
    assert tokens.signals[Text("after")].mean().tolist() == [[0.0] * 32]


def test_a_picture_alone_has_no_text(model):
    inputs = prompt(model, [1])
    inputs["input_ids"] = torch.full((1, tokens_per_image(model)), IMAGE_TOKEN)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    (tokens,) = read(model, lambda m: m(**inputs))
    assert not any(bool(tokens.signals[Text(span)].valid.any()) for span in SPANS)


def test_ids_that_the_configuration_names_can_be_left_out(model):
    inputs = prompt(model, [1])
    plain = Text("before", special=False)
    (tokens,) = read(model, lambda m: m(**inputs), plain, Text("before"))
    assert ids_of(model, tokens.signals[Text("before")], 0)[0] == 1
    assert ids_of(model, tokens.signals[plain], 0) == around(real(inputs, 0))["before"][1:]


@pytest.mark.parametrize("stage", ["projector", "llm"])
def test_embeddings_in_place_of_ids_give_the_same_text(model, stage):
    inputs = prompt(model, [1, 1], "left")
    needs = (Text(), Text("before", special=False))
    embedded = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach()}
    del embedded["input_ids"]
    (expected,), (got,) = (read(model, lambda m, x=x: m(**x), *needs, stage=stage) for x in (inputs, embedded))
    for signal in needs:
        a, b = expected.signals[signal], got.signals[signal]
        assert torch.equal(a.valid, b.valid)
        torch.testing.assert_close(a.features[a.valid], b.features[b.valid])


@pytest.mark.parametrize("labelled", [False, True])
def test_documents_of_a_packed_row_have_texts_of_their_own(model, labelled):
    both = [prompt(model, [1]), prompt(model, [1], seed=1)]
    ids = torch.cat([x["input_ids"] for x in both], dim=1)
    row = {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(x["input_ids"].shape[1]) for x in both])[None],
        "pixel_values": torch.cat([x["pixel_values"] for x in both]),
    }
    documents = [real(x, 0) for x in both]
    if labelled:  # the last two of each are its answer
        row["labels"], at = torch.full_like(ids, -100), 0
        for x in both:
            at += x["input_ids"].shape[1]
            row["labels"][:, at - 2 : at] = ids[:, at - 2 : at]
        documents = [document[:-2] for document in documents]
    with pytest.warns(UserWarning, match="answer between two images") if labelled else nullcontext():
        (tokens,) = read(model, lambda m: m(**row, use_cache=False))
    check(model, tokens, documents)


def test_a_prompt_whose_text_comes_later_is_refused(model):
    inputs = prompt(model, [1])
    size = int((inputs["input_ids"] == IMAGE_TOKEN).nonzero()[-1, 1]) + 1

    def run(m):
        m.generate(**inputs, max_new_tokens=2, do_sample=False, prefill_chunk_size=size)

    with pytest.raises(
        ValueError, match=r"reads the text of the prompt, but this call .* leave out prefill_chunk_size"
    ):
        read(model, run, Text("after"))
    (tokens,) = read(model, run, Text("before"))
    assert ids_of(model, tokens.signals[Text("before")], 0) == around(real(inputs, 0))["before"]


def test_text_is_shown_without_gradients(model):
    inputs = prompt(model, [1])
    method, seen = reader("projector", Text())
    with tr.wrapped(model, method):
        model(**inputs).logits.sum().backward()
    assert not seen[0].signals[Text()].features.requires_grad
    model.zero_grad()
