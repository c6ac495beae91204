"""DyVTE's gates are trained: labels found out by trying, answers that the model writes itself, and what gates then say."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt

import tokenreduce as tr
from tokenreduce.eval import demo, tiny_models
from tokenreduce.training_step import TrainingStep

LAYERS = 5


@pytest.fixture
def model():
    return llava()


def data(model, images, answers: bool, seed: int = 0) -> dict:
    inputs = prompt(model, images, "left", seed=seed)
    if answers:
        inputs["labels"] = inputs["input_ids"].clone()
        inputs["labels"][:, :-2] = -100
    return inputs


@torch.no_grad()
def by_hand(model, inputs, weights, layer: int) -> float:
    """Cross-entropy of gate ``layer``, sample by sample: its input off an unreduced model, its label off a shortened one."""
    losses = []
    first, second = (weights.tensors[f"gates.{layer}.{i}.weight"] for i in (0, 2))
    whole = model(**{name: x for name, x in inputs.items() if name != "labels"}, output_hidden_states=True)
    with tr.wrapped(model, "dyvte", fixed_layer=layer):
        short = model(**inputs).logits
    for b, ids in enumerate(inputs["input_ids"]):
        if not (ids == IMAGE_TOKEN).any():
            continue
        behind = int((ids == IMAGE_TOKEN).nonzero().max()) + 1
        text = whole.hidden_states[layer + 1][b, behind:-2]
        answer = inputs["labels"][b, -2:]
        old, new = (x[b, -3:-1].log_softmax(-1) for x in (whole.logits, short))
        loss = [-float(x[range(2), answer].mean()) for x in (old, new)]
        leave = old.argmax(-1).tolist() == new.argmax(-1).tolist() and loss[1] < 1.03 * loss[0]
        logits = second @ torch.nn.functional.gelu(first @ torch.cat([text[:-1].mean(dim=0), text[-1]]))
        losses.append(-float(logits.log_softmax(-1)[int(leave)]))
    return sum(losses) / len(losses)


def test_the_loss_is_that_of_a_drawn_gate_and_pictures_of_a_sample_count_once(model):
    inputs = data(model, [1, 0, 2, 1], answers=True)
    settings = tr.TrainingSettings(steps=6, learning_rate=1e-9)
    found = tr.train(model, "dyvte", [inputs], hidden=8, settings=settings)
    each = [by_hand(model, inputs, found.weights, layer) for layer in range(LAYERS - 1)]
    drawn = [min(range(LAYERS - 1), key=lambda layer: abs(each[layer] - loss)) for loss in found.losses]
    assert found.losses == pytest.approx([each[layer] for layer in drawn], abs=1e-4)
    assert len(set(drawn)) > 1
    assert found.weights.header.shape == {"hidden": 8}


def test_without_labels_the_answer_is_what_the_model_writes_with_all_tokens(model):
    inputs = data(model, [1, 2], answers=False)
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    length, end = inputs["input_ids"].shape[1], int(written[0, -30])
    model.generation_config.eos_token_id = end
    with tr.wrapped(model, "dyvte", keep=0.2):
        step = TrainingStep(model, None, None, inputs, None, tr.TrainingSettings(), 0).answered()
    for row, own in zip(step.labels, written):
        answer = own[length:].tolist()
        answer = answer[: answer.index(end) + 1] if end in answer else answer
        assert row[row != -100].tolist() == answer
        assert (row[:length] == -100).all()
    columns = step.inputs["attention_mask"][:, length:].bool()
    assert torch.equal(columns, step.labels[:, length:] != -100)
    assert step.answered() is step


def test_a_run_that_stops_goes_on_to_the_same_gates(model, tmp_path):
    made, state = [data(model, [1, 1], answers=True, seed=seed) for seed in range(3)], tmp_path / "run.safetensors"

    class Stopped(Exception): ...

    def stops(step):
        if step == 5:
            raise Stopped
        return made[step % 3]

    def train(given, **more):
        return tr.train(model, "dyvte", given, hidden=8, settings=tr.TrainingSettings(steps=7), **more)

    with pytest.raises(Stopped):  # some gates have not been drawn yet
        train(stops, checkpoint=state, every=2)
    rest = train(lambda step: made[step % 3], checkpoint=state)
    assert rest.weights.sha256 == train(lambda step: made[step % 3]).weights.sha256


def test_what_gates_cannot_learn_from_is_refused(model):
    right = prompt(model, [1, 2], "right")
    assert not right["attention_mask"].all()
    with pytest.raises(ValueError, match=r"padded on the right.*allowed: data with labels.*padding_side"):
        tr.train(model, "dyvte", [right], hidden=8)
    text = data(model, [0, 0], answers=True)
    text.pop("pixel_values", None)
    with pytest.raises(ValueError, match="no prompt of step 0 has text between its pictures and its answer"):
        tr.train(model, "dyvte", [text], hidden=8)
    several = tiny_models.build("gemma3n")
    with pytest.raises(ValueError, match=r"tokens have 3 states of 32 channels each.*no weights, and keep or"):
        tr.train(several, "dyvte", [tiny_models.inputs("gemma3n", "mixed", several)], hidden=4)


@pytest.mark.slow
def test_trained_gates_say_what_trying_finds_on_scenes_they_were_not_trained_on():
    """Every other prompt holds its answer already, so that what is left to say, its end, is seen by the text alone."""
    model, processor = demo.load()

    def asked(questions):
        text = [demo.prompt(q.question) + (q.answer if i % 2 else "") for i, q in enumerate(questions)]
        return dict(processor(images=[q.image for q in questions], text=text, return_tensors="pt", padding=True))

    training, others = demo.questions("train", 80, per_image=4), asked(demo.questions("test", 80, per_image=1))
    with tr.wrapped(model, "dyvte"):
        step = TrainingStep(model, None, None, others, None, tr.TrainingSettings(), 0).answered()
    wanted = tr.exit_layers(model, {**step.inputs, "labels": step.labels}).tolist()

    def right(weights) -> float:
        """The share of prompts at which gates choose the layer that trying finds."""
        with tr.wrapped(model, "dyvte", weights=weights), torch.no_grad():
            model(**others)
            seen = [sum(len(image.kept(layer)) > 0 for layer in range(4)) for image in tr.trace(model).images]
        return sum(count == layer + 1 for count, layer in zip(seen, wanted)) / len(wanted)

    def data(step):
        return asked([training[(8 * step + i) % len(training)] for i in range(8)])

    before = tr.train(model, "dyvte", data, hidden=32, settings=tr.TrainingSettings(steps=1, learning_rate=1e-9))
    after = tr.train(model, "dyvte", data, hidden=32, settings=tr.TrainingSettings(steps=40))
    most = max(Counter(wanted).values()) / len(wanted)
    assert right(after.weights) > most + 0.1 > right(before.weights) + 0.1
