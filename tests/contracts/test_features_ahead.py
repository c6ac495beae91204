"""Features encoded ahead of a prompt belong to the pictures they came from, whatever was encoded besides, in any order."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt

import tokenreduce as tr

#: ranks in the tower, ranks in the decoder, trims the cache, merges in the tower
METHODS = [tr.HiPrune(keep=5), tr.FastV(layer=2, keep=4), tr.MustDrop(keep=6, window=2), tr.ToMe(keep=8)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


@pytest.fixture(scope="module")
def model():
    return llava()


def features(model, pixels):
    return torch.cat(list(model.get_image_features(pixels).pooler_output))


def embeddings(model, inputs, rows):
    """``rows`` (R, D) in the places of the pictures: all that is left of a prompt, as programs hand it over."""
    ids = inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids).masked_scatter((ids == IMAGE_TOKEN)[..., None], rows)
    return {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}


def answer(model, inputs, **more):
    """What is written behind the prompt."""
    columns = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return model.generate(**inputs, max_new_tokens=4, do_sample=False, **more)[:, columns:]


@every_method
@pytest.mark.parametrize("beams", [1, 3])
def test_a_prompt_of_embeddings_answers_as_one_of_pixels(model, method, beams):
    inputs = prompt(model, [1, 2], "left")
    with tr.wrapped(model, method), torch.no_grad():
        expected, kept = answer(model, inputs, num_beams=beams), tr.trace(model).kept
        embedded = embeddings(model, inputs, features(model, inputs["pixel_values"]))
        assert torch.equal(answer(model, embedded, num_beams=beams), expected)
        assert all(map(torch.equal, tr.trace(model).kept, kept))


@every_method
def test_pictures_encoded_one_by_one_are_told_apart(model, method):
    inputs, one = prompt(model, [3]), prompt(model, [1], seed=4)
    with tr.wrapped(model, method), torch.no_grad():
        expected, alone = model(**inputs).logits, model(**one).logits
        for order in itertools.permutations(range(3)):
            found = {i: features(model, inputs["pixel_values"][i : i + 1]) for i in order}
            embedded = embeddings(model, inputs, torch.cat([found[i] for i in range(3)]))
            unused = features(model, one["pixel_values"])
            torch.testing.assert_close(model(**embedded).logits, expected, atol=3e-5, rtol=0)
            assert torch.equal(model(**embeddings(model, one, unused)).logits, alone)  # and again, in another prompt


@every_method
def test_the_same_picture_encoded_twice_is_one(model, method):
    inputs = prompt(model, [1])
    with tr.wrapped(model, method), torch.no_grad():
        expected = model(**inputs).logits
        features(model, inputs["pixel_values"])
        embedded = embeddings(model, inputs, features(model, inputs["pixel_values"]))
        assert torch.equal(model(**embedded).logits, expected)


@every_method
@pytest.mark.parametrize("beams", [1, 2])
def test_a_picture_encoded_and_not_used_is_nobodys(model, method, beams):
    unused, inputs = prompt(model, [1], seed=1), prompt(model, [1], seed=2)
    with tr.wrapped(model, method), torch.no_grad():
        expected = answer(model, inputs, num_beams=beams)
        model.get_image_features(unused["pixel_values"])
        assert torch.equal(answer(model, inputs, num_beams=beams), expected)


@every_method
@pytest.mark.parametrize("encodes", ["ahead", "in the call"])
def test_a_failure_behind_the_tower_leaves_nothing_behind(model, method, encodes):
    inputs, other = prompt(model, [1]), prompt(model, [1], seed=2)

    def fail(module, args):
        raise torch.OutOfMemoryError

    with tr.wrapped(model, method), torch.no_grad():
        expected = answer(model, inputs)
        handle = model.model.multi_modal_projector.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            features(model, other["pixel_values"]) if encodes == "ahead" else model(**other)
        handle.remove()
        assert torch.equal(answer(model, inputs), expected)
        embedded = embeddings(model, inputs, features(model, inputs["pixel_values"]))
        assert torch.equal(answer(model, embedded), expected)


@every_method
def test_one_thread_encodes_and_another_generates(model, method):
    inputs = [prompt(model, [1], seed=seed) for seed in range(4)]
    with tr.wrapped(model, method), torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = [answer(model, one) for one in inputs]
        embedded = [embeddings(model, one, features(model, one["pixel_values"])) for one in inputs]
        assert all(map(torch.equal, pool.map(lambda one: answer(model, one), embedded), expected))


def test_a_budget_of_its_own_while_encoding(model):
    """Signals do not depend on the budget, merged features do: each picture is matched with its own pass."""
    inputs = prompt(model, [1])
    with tr.wrapped(model, "tome", keep=8), torch.no_grad():
        with tr.budget(model, keep=5):
            expected = model(**inputs).logits
            five = features(model, inputs["pixel_values"])
        eight = features(model, inputs["pixel_values"])
        for rows, count in ((five, 5), (eight, 8)):
            logits = model(**embeddings(model, inputs, rows)).logits
            assert tr.report(model).tokens_kept == [[count]]
            assert (count == 5) == torch.equal(logits, expected)
        both = embeddings(model, prompt(model, [2]), torch.cat([five, eight]))
        model(**both)
        assert tr.report(model).tokens_kept == [[5, 8]]
        kept = [len(image.standing_for().unique()) for image in tr.trace(model).images]
        assert kept == [5, 8]


def test_part_of_a_picture_is_refused(model):
    inputs = prompt(model, [1])
    with tr.wrapped(model, "hiprune", keep=5), torch.no_grad():
        rows = features(model, inputs["pixel_values"])
        turned = embeddings(model, inputs, rows.flip(0))
        with pytest.raises(ValueError, match=r"from column 3 on not those of a whole picture.*unchanged and in order"):
            model(**turned)
        with pytest.warns(UserWarning, match="cannot be told from text"):
            model(**embeddings(model, inputs, rows * 2))  # nothing is left that could be recognised


def test_pictures_of_one_look_and_unlike_layouts_are_refused():
    from tokenreduce.adapters.hooks.features_ahead import FeaturesAhead
    from tokenreduce.adapters.hooks.tower_passes import Finished, Pick, TowerPass
    from tokenreduce.adapters.visual_inputs import Picture
    from tokenreduce.layout import Layout

    ahead, rows = FeaturesAhead(), torch.randn(6, 4)
    for layout in (Layout(2, 3), Layout(2, 3), Layout(3, 2)):
        ahead.note([Pick(Finished(TowerPass(0, 1, {}), [Picture(layout, 6)]), 0)], rows)
    with pytest.raises(ValueError, match="those of pictures of different layouts"):
        ahead.find(rows[None], None)
