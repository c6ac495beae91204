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
from tokenreduce.eval import demo
from tokenreduce.relaxed_selection import soft_top_k
from tokenreduce.training_state import follow

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


@pytest.mark.parametrize(("relax", "steps"), [("straight_through", 12), ("noise", 30)])
def test_a_trained_selection_lets_the_model_say_what_it_says_with_all_tokens(relax, steps):
    """Of scenes that were not trained on, with a quarter of the tokens; objects stand out from their background."""
    model, processor = demo.load()

    def asked(questions):
        text = [demo.prompt(question.question) for question in questions]
        return dict(processor(images=[q.image for q in questions], text=text, return_tensors="pt", padding=True))

    training, others = demo.questions("train", 80, per_image=2), asked(demo.questions("test", 60, per_image=1))
    assert others["attention_mask"][:, -1].all()

    def answers(**more):
        with torch.no_grad():
            return model(**others, **more).logits[:, -1].log_softmax(-1)

    def off(weights):
        """Divergence from the whole picture, and the share of other answers."""
        with tr.wrapped(model, "learned_selector", weights=weights, keep=0.25):
            own, whole = answers(), answers(tr_keep=None)
        away = torch.nn.functional.kl_div(own, whole, reduction="batchmean", log_target=True)
        return float(away), float((own.argmax(-1) != whole.argmax(-1)).float().mean())

    def data(step):
        return asked([training[(4 * step + i) % len(training)] for i in range(4)])

    settings = tr.TrainingSettings(steps=steps, relax=relax)
    found = tr.train(model, "learned_selector", data, keep=0.25, settings=settings)
    assert sum(found.losses[-4:]) < 0.5 * sum(found.losses[:4])
    (before, differing), (after, differs) = off(None), off(found.weights)
    assert after < 0.5 * before
    assert differs < 0.5 * differing


KILLED = """
    import os, signal, sys
    import tokenreduce as tr
    sys.path += {tests!r}
    import torch
    from models import llava
    from test_training import data

    torch.set_num_threads(1)
    made = data()

    def killing(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return made[step % 3]

    tr.train(llava(), "learned_selector", killing, keep=5, settings=tr.TrainingSettings(steps=5), checkpoint={state!r}, every=2)
"""


@pytest.fixture
def one_thread():
    """Sums are added up in the same order in every process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_run_that_was_killed_goes_on_to_the_same_weights(model, one_thread, tmp_path):
    state = tmp_path / "state.safetensors"
    made, settings = data(), tr.TrainingSettings(steps=5)
    script = textwrap.dedent(KILLED).format(tests=[str(HERE), str(HERE / "tokenreduce")], state=str(state))
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert state.exists()
    asked = []

    def heard(step):
        asked.append(step)
        return made[step % 3]

    killed = tr.train(model, "learned_selector", heard, keep=5, settings=settings, checkpoint=state)
    assert asked == [2, 3, 4], "from the checkpoint on"
    assert not state.exists()
    whole = tr.train(model, "learned_selector", lambda step: made[step % 3], keep=5, settings=settings)
    assert killed.weights.sha256 == whole.weights.sha256
    assert killed.losses == whole.losses


def test_what_the_optimizer_holds_goes_where_the_module_went():
    module = torch.nn.Linear(
        3, 2, device="meta"
    )  # as where a checkpoint was read before the first forward pass moved it
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        optimizer.state[parameter] = {"step": torch.tensor(4.0), "exp_avg": torch.zeros(parameter.shape)}
    follow(optimizer)
    for own in optimizer.state.values():
        assert (own["step"].device.type, own["exp_avg"].device.type) == ("cpu", "meta")


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
    silent = data(answers=True)[0]
    silent["labels"][1] = -100
    with pytest.raises(
        ValueError, match=r"labels of step 0, sample 1, are -100 everywhere; allowed: at least one token"
    ):
        tr.train(model, "learned_selector", [silent])
    for keep in (1.0, 16):
        with pytest.raises(ValueError, match=rf"keep={keep} leaves out no token .* step 0.*allowed: fewer tokens"):
            tr.train(model, "learned_selector", data(), keep=keep)
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
