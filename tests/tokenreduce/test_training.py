"""Training what a method learns: gradients that pass the choice, a frozen model, a run that is killed and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from models import llava, prompt
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce.cli import app
from tokenreduce.relaxed_selection import soft_top_k

HERE = Path(__file__).resolve().parent.parent


@pytest.fixture
def model():
    return llava()


def data(answers: bool = False) -> list[dict]:
    made = [prompt(llava(), [1, 1], "left", seed=seed) for seed in range(3)]
    for inputs in made:
        if answers:
            inputs["labels"] = inputs["input_ids"].clone()
            inputs["labels"][:, :-2] = -100
    return made


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_a_soft_choice_adds_up_and_its_gradient_is_that_of_differences(temperature):
    torch.manual_seed(0)
    logits = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    share = soft_top_k(logits, 4, temperature)
    torch.testing.assert_close(share.sum(dim=1), torch.full((3,), 4.0, dtype=torch.float64))
    assert ((share >= 0) & (share <= 1)).all()
    assert (share.gather(1, logits.argsort(dim=1)).diff(dim=1) >= 0).all(), "in the order of the logits"
    assert torch.autograd.gradcheck(lambda x: soft_top_k(x, 4, temperature), logits, eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("relax", ["noise", "straight_through"])
@pytest.mark.parametrize(("asks", "loss"), [(False, "distillation"), (True, "answers")])
def test_weights_are_trained_and_the_model_is_left_as_it_was(model, relax, asks, loss):
    model.model.vision_tower.requires_grad_(False)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    settings = tr.TrainingSettings(steps=4, relax=relax, loss=loss)
    found = tr.train(model, "learned_selector", data(answers=True), keep=5, asks=asks, settings=settings)
    assert not tr.is_wrapped(model)
    assert asked == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    header = found.weights.header
    assert (header.method, header.shape) == ("learned_selector", {"hidden": 64, "asks": asks})
    assert (header.training["steps"], header.training["loss"], header.training["keep"]) == (4, loss, 5)
    assert len(found.losses) == 4
    new = tr.train(
        model, "learned_selector", data(), keep=5, asks=asks, settings=tr.TrainingSettings(steps=1, learning_rate=1e-9)
    )
    changed = [name for name, x in found.weights.tensors.items() if not torch.allclose(x, new.weights.tensors[name])]
    assert len(changed) == len(found.weights.tensors), "every tensor has a gradient"
    with tr.wrapped(model, "learned_selector", weights=found.weights, keep=5), torch.no_grad():
        model(**prompt(model, [1, 2], "left"))
        assert {len(image.kept(0)) for image in tr.trace(model).images} == {5}
    further = tr.train(model, "learned_selector", data(), weights=found.weights, settings=tr.TrainingSettings(steps=1))
    assert further.weights.header.training["start"] == found.weights.sha256


def test_a_loss_falls_where_there_is_something_to_learn(model):
    """The same prompts again and again, a choice that hardly is one: the noise in place of tokens goes where it does not hurt."""
    once = data()[:1]
    settings = tr.TrainingSettings(steps=60, temperature=(0.3, 0.1), learning_rate=1e-2)
    losses = tr.train(model, "learned_selector", once, keep=12, settings=settings).losses
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])


SCRIPT = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import torch
    from models import llava, prompt
    import tokenreduce as tr

    torch.set_num_threads(1)
    made = [prompt(llava(), [1, 1], "left", seed=seed) for seed in range(3)]

    def data(step):
        if step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return made[step % 3]

    settings = tr.TrainingSettings(steps=7)
    found = tr.train(llava(), "learned_selector", data, keep=5, settings=settings, checkpoint={state!r}, every=2)
    found.weights.save({out!r}, overwrite=True)
"""


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    state, found = tmp_path / "state.safetensors", []
    for name, kills in (("whole", [-1]), ("killed", [3, 5, -1])):
        out = tmp_path / f"{name}.safetensors"
        script = textwrap.dedent(SCRIPT).format(tests=str(HERE), state=str(state), out=str(out))
        for kill in kills:
            done = subprocess.run([sys.executable, "-c", script, str(kill)], env={**os.environ, "OMP_NUM_THREADS": "1"})
            assert done.returncode == (0 if kill < 0 else -signal.SIGKILL)
            assert state.exists() == (kill >= 0)
        found.append(tr.Weights.of(out))
    assert found[0].sha256 == found[1].sha256


def test_a_checkpoint_of_another_run_is_refused(model, tmp_path):
    state = tmp_path / "state.safetensors"

    class Stopped(Exception): ...

    def stops(step):
        if step == 2:
            raise Stopped
        return data()[0]

    with pytest.raises(Stopped):
        tr.train(model, "learned_selector", stops, keep=5, checkpoint=state, every=1)
    assert not tr.is_wrapped(model)
    with pytest.raises(ValueError, match=r"another run: training\.keep 5, not 6"):
        tr.train(model, "learned_selector", stops, keep=6, checkpoint=state)
    with pytest.raises(ValueError, match=r"checkpoint='state.json'; allowed: a file name ending in \.safetensors"):
        tr.train(model, "learned_selector", stops, checkpoint="state.json")


def test_what_cannot_be_trained_is_refused(model):
    with pytest.raises(ValueError, match="'fastv' has nothing to train"):
        tr.train(model, "fastv", data())
    with pytest.raises(ValueError, match="data is empty"):
        tr.train(model, "learned_selector", [])
    with pytest.raises(ValueError, match="without labels"):
        tr.train(model, "learned_selector", data(), settings=tr.TrainingSettings(loss="answers"))
    for wrong in ({"steps": 0}, {"loss": "mse"}, {"relax": "hard"}, {"temperature": 1.0}, {"learning_rate": 0}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            tr.TrainingSettings(**wrong)
    with tr.wrapped(model, "random"), pytest.raises(ValueError, match="wrapped"):
        tr.train(model, "learned_selector", data())


def test_the_command_trains_on_the_demo_model(tmp_path):
    out, curve = tmp_path / "selector.safetensors", tmp_path / "loss.png"
    more = ["--method", "learned_selector", "--keep", 8, "--steps", 2, "--batch", 2, "--out", out, "--curve", curve]
    done = CliRunner().invoke(app, ["train", "demo", *map(str, more)])
    assert done.exit_code == 0, done.output
    assert tr.Weights.of(out).header.training["keep"] == 8
    assert curve.stat().st_size > 1000
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["loss.png", "selector.safetensors"]
    again = CliRunner().invoke(app, ["train", "demo", *map(str, more)])
    assert again.exit_code == 2
    assert "pass --overwrite" in " ".join(again.output.split())
