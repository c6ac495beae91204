"""The demo model and its data: deterministic, truthful, loadable offline, sensitive to the right tokens."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tokenreduce.eval import demo
from tokenreduce.eval.demo import evaluate, model, packing, scene_questions, scenes, token_scores

MODEL_BYTES = 6_000_000


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    network, processor = demo.load()
    network.set_attn_implementation("eager")
    return network, processor


@pytest.fixture(scope="module")
def pictures(loaded):
    return token_scores.scored_pictures(loaded[0], "test", seed=11, images=40, per_image=10)


# ------------------------------------------------------------------ data


@pytest.mark.parametrize(("split", "low", "high"), [("train", 1, 8), ("test", 1, 5), ("hard", 8, 8)])
def test_split_has_its_number_of_objects_all_different(split, low, high):
    for index in range(30):
        things = scenes.scene(split, 3, index).things
        assert low <= len(things) <= high
        assert len({thing.name for thing in things}) == len({thing.color for thing in things}) == len(things)
        assert all(value % scenes.LATTICE == 0 for thing in things for value in thing.center)


def test_questions_do_not_depend_on_what_was_asked_before():
    whole = demo.questions("test", 6, seed=5)
    alone = demo.questions("test", [4], seed=5)
    expected = [question for question in whole if question.index == 4]
    assert [(q.question, q.answer, q.kind, q.target) for q in alone] == [
        (q.question, q.answer, q.kind, q.target) for q in expected
    ]
    assert np.array_equal(np.asarray(alone[0].image), np.asarray(expected[0].image))
    assert not np.array_equal(alone[0].scene.pixels, demo.questions("test", [4], seed=6)[0].scene.pixels)


def test_questions_are_the_same_in_another_process():
    code = (
        "from tokenreduce.eval import demo; import sys; q = demo.questions('hard', [2], seed=9)[3];"
        "print(q.question, q.answer, int(q.scene.pixels.astype('int64').sum()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = demo.questions("hard", [2], seed=9)[3]
    # The last word: asking questions must not import torch.
    total = int(here.scene.pixels.astype("int64").sum())
    assert done.stdout.strip() == f"{here.question} {here.answer} {total} False"


def test_patch_truth_agrees_with_the_pixels():
    """Objects are saturated and backgrounds are not, so colour tells object patches apart, up to edges."""
    for index in range(20):
        picture = scenes.scene("test", 2, index)
        values = picture.pixels.astype(int)
        vivid = (values.max(-1) - values.min(-1) > 90).reshape(12, 14, 12, 14).mean((1, 3)).reshape(-1)
        assert (picture.owner[vivid > 0.10] >= 0).all()
        assert vivid[picture.owner >= 0].mean() > 0.05
        assert vivid[picture.owner < 0].mean() < 0.01
        for number, thing in enumerate(picture.things):
            patches = np.flatnonzero(picture.owner == number)
            centers = np.stack((patches % 12, patches // 12), -1) * 14 + 7
            assert len(patches)
            assert np.abs(centers - thing.center).max() <= 18


def test_answers_follow_from_the_scene():
    asked = demo.questions("train", 60, seed=1, per_image=30)
    assert {question.kind for question in asked} == set(demo.KINDS)
    for question in asked:
        things, words = question.scene.things, question.question.rstrip("?").split()
        if question.kind == "color":
            assert [t.color for t in things if t.name == words[-1]] == [question.answer]
        elif question.kind in ("shape", "read"):
            assert [t.name for t in things if t.color == words[-1]] == [question.answer]
            assert (question.answer in scenes.SHAPES) == (question.kind == "shape")
        elif question.kind == "exist":
            there = any((t.color, t.name) == tuple(words[-2:]) for t in things)
            assert question.answer == ("yes" if there else "no")
        elif question.kind == "where":
            x, y = next(t.center for t in things if t.name == words[-1])
            assert question.answer == f"{'top' if y < 84 else 'bottom'} {'left' if x < 84 else 'right'}"
        else:
            shapes = sum(t.name in scenes.SHAPES for t in things)
            number = {"objects": len(things), "shapes": shapes, "characters": len(things) - shapes}[words[2]]
            assert question.answer == scene_questions.NUMBERS[number]
        if question.target >= 0:
            thing = things[question.target]
            assert {thing.name, thing.color} & {*words, question.answer}


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of"):
        demo.questions("val", 1)
    with pytest.raises(ValueError, match="split must be one of"):
        demo.questions("crowd", 1)


# ------------------------------------------------------------------ files, tokenizer, processor


def test_files_are_small_and_complete():
    assert (demo.WEIGHTS / "model.safetensors").stat().st_size < MODEL_BYTES
    names = ("config.json", "tokenizer.json", "processor_config.json", "README.md")
    assert all((demo.WEIGHTS / name).is_file() for name in names)
    training = json.loads((demo.WEIGHTS / "training.json").read_text())
    assert list(training["stages"]) == ["tower", "align", "language"]
    assert set(json.loads((demo.WEIGHTS / "evaluation.json").read_text())["splits"]) == {"test", "hard"}


def test_stored_keys_use_the_layout_that_vllm_reads():
    with safe_open(demo.WEIGHTS / "model.safetensors", "pt") as weights:
        keys = list(weights.keys())
        assert {weights.get_slice(key).get_dtype() for key in keys} == {"F16"}
    tower = [key for key in keys if key.startswith("vision_tower.")]
    assert tower
    assert all(key.startswith("vision_tower.vision_model.") for key in tower)


def test_nothing_is_missing_or_left_over_on_loading():
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    network, info = LlavaForConditionalGeneration.from_pretrained(demo.WEIGHTS, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert network.dtype == torch.float16
    assert AutoProcessor.from_pretrained(demo.WEIGHTS).tokenizer.padding_side == "left"


def test_fast_tokenization_equals_the_tokenizer(loaded):
    _, processor = loaded
    for question in demo.questions("train", 20, seed=4):
        ids = processor.tokenizer(question.question + " ASSISTANT:", add_special_tokens=False)["input_ids"]
        assert ids == model.word_ids(question.question + " assistant:")
        assert model.UNK not in ids + model.word_ids(question.answer)


def test_chat_template_equals_the_prompt(loaded):
    _, processor = loaded
    parts = [{"type": "image"}, {"type": "text", "text": "what shape is red?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    plain = [{"role": "user", "content": "<image>\nwhat shape is red?"}]
    assert text == demo.prompt("what shape is red?")
    assert text == processor.apply_chat_template(plain, add_generation_prompt=True)


@pytest.mark.parametrize("size", [(640, 427), (100, 333), (168, 168)])
def test_processor_takes_pictures_of_any_size(loaded, size):
    network, processor = loaded
    inputs = processor(
        images=Image.new("RGB", size, "red"), text=demo.prompt("where is the star?"), return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 168, 168)
    assert int((inputs["input_ids"] == network.config.image_token_id).sum()) == 144


# ------------------------------------------------------------------ answers


def test_generation_answers_a_padded_batch(loaded):
    network, processor = loaded
    asked = demo.questions("test", 3, seed=7, per_image=6)
    inputs = processor(
        images=[question.image for question in asked],
        text=[demo.prompt(question.question) for question in asked],
        return_tensors="pt",
        padding=True,
    )
    assert 0 in inputs["attention_mask"]
    replies = demo.replies(processor, network.generate(**inputs), inputs["input_ids"].shape[1])
    assert demo.accuracy(replies, asked)["all"] >= 0.9


def test_packed_questions_equal_separate_prompts(loaded, pictures):
    network, processor = loaded
    asked = demo.questions("test", 1, seed=11, per_image=10)
    inputs = processor(
        images=[question.image for question in asked],
        text=[demo.prompt(question.question) for question in asked],
        return_tensors="pt",
        padding=True,
    )
    packed = packing.pack(pictures.asked[:1], torch.arange(144)[None])
    with torch.no_grad():
        separate = network(**inputs, logits_to_keep=1).logits[:, -1]
        tokens = network.model.multi_modal_projector(pictures.features[:1])
        hidden, _ = packing.run_packed(network, packed, tokens)
        together = network.lm_head(hidden[0, packed.last[0]])
    torch.testing.assert_close(together, separate, atol=2e-3, rtol=1e-3)


def test_all_tokens_answer_nearly_everything(loaded, pictures):
    kept = torch.arange(144).expand(len(pictures.features), -1)
    assert evaluate.accuracy_of(loaded[0], pictures, kept)["all"] > 0.98


def test_random_tokens_lose_and_attended_tokens_do_not(loaded, pictures):
    network, scores = loaded[0], pictures.scores
    assert evaluate.accuracy_of(network, pictures, token_scores.top(scores["random"], 36))["all"] < 0.68
    for name in ("cls 4", "received 1", "received 4"):
        assert evaluate.accuracy_of(network, pictures, token_scores.top(scores[name], 36))["all"] > 0.96
    assert evaluate.accuracy_of(network, pictures, token_scores.top(scores["cls 4"], 16))["all"] > 0.95


def test_last_prompt_token_finds_the_object_asked_about(loaded, pictures):
    rows = token_scores.language_rows(loaded[0], pictures)
    signal = token_scores.attention_tables(pictures, rows)["language"]
    assert signal[0]["objects_top_36"] > 0.9
    assert min(signal[1]["asked_top_16"], signal[2]["asked_top_16"]) > 0.9
    assert evaluate.fastv_accuracy(loaded[0], pictures, rows[evaluate.FASTV_LAYER], 16)["all"] > 0.95


def test_accuracy_counts_exact_matches():
    asked = demo.questions("test", 1, seed=0)[:2]
    marks = demo.accuracy([asked[0].answer.upper() + ".", "nonsense"], asked)
    assert marks["all"] == 0.5
    with pytest.raises(ValueError, match="one reply per question"):
        demo.accuracy(["yes"], asked)
