"""Several processes train the same weights as one that is given all of their data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.methods.learned_selector import Predictor

TESTS = Path(__file__).resolve().parent.parent
STEPS = tr.TrainingSettings(steps=4)

#: rows 0 and 1 of a step are the first process's, 2 and 3 the second's; the second has more words to learn
SCRIPT = """
    import sys
    import tokenreduce  # the package, before the folder of its tests is found
    sys.path += {tests!r}
    from test_training_group import trains
    trains({out!r}, {state!r}, {dies})
"""


def batch(step: int) -> dict:
    """Four prompts, of one answer token, one, three and three."""
    inputs = prompt(llava(), [1, 1, 1, 1], "left", seed=step)
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][:2, :-1] = -100
    inputs["labels"][2:, :-3] = -100
    return inputs


def trains(out: str, state: str, dies: bool) -> None:
    """What each process runs."""
    import accelerate

    torch.set_num_threads(1)
    accelerator = accelerate.Accelerator(cpu=True)

    def half(number: int) -> dict:
        step, own = divmod(number, 2)
        assert own == accelerator.process_index
        if dies and step == 3 and own == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {name: x[2 * own : 2 * own + 2] for name, x in batch(step).items()}

    found = tr.train(llava(), "learned_selector", half, keep=5, settings=STEPS, checkpoint=state, every=2)
    found.weights.save(f"{out}/{accelerator.process_index}.safetensors")


@pytest.fixture
def launched(tmp_path):
    def launch(dies: bool) -> int:
        script = tmp_path / "train.py"
        tests = [str(TESTS), str(TESTS / "tokenreduce")]
        text = SCRIPT.format(tests=tests, out=str(tmp_path), state=str(tmp_path / "state.safetensors"), dies=dies)
        script.write_text("\n".join(line.strip() for line in text.splitlines()))
        several = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        return subprocess.run([sys.executable, "-m", *several], env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    return launch


def scores(weights: tr.Weights) -> torch.Tensor:
    """Of random tokens, without the mean of a picture: a shift of all changes no choice, and its gradient is rounding."""
    predictor = Predictor(32, 64, asks=False)
    predictor.load_state_dict(weights.tensors)
    with torch.no_grad():
        found = predictor(torch.randn(8, 16, 32, generator=torch.Generator().manual_seed(0)), None)
    return found - found.mean(dim=1, keepdim=True)


@pytest.mark.long
def test_two_processes_give_the_weights_of_one_with_both_halves_and_go_on_when_killed(launched, tmp_path):
    whole = tr.train(llava(), "learned_selector", batch, keep=5, settings=STEPS)
    assert launched(dies=True) != 0
    assert (tmp_path / "state.safetensors").exists()
    with pytest.raises(ValueError, match=r"training\.processes 2, not 1"):
        tr.train(llava(), "learned_selector", batch, keep=5, settings=STEPS, checkpoint=tmp_path / "state.safetensors")
    assert launched(dies=False) == 0
    first, second = (tr.Weights.of(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert first.sha256 == second.sha256
    assert not (tmp_path / "state.safetensors").exists()
    settings = tr.TrainingSettings(steps=1, learning_rate=1e-9)
    start = tr.train(llava(), "learned_selector", batch, keep=5, settings=settings).weights
    wanted, moved = scores(whole.weights), (scores(whole.weights) - scores(start)).abs().max()
    assert (scores(first) - wanted).abs().max() < 1e-3 * moved, "sums in another order, and nothing else"


def test_processes_that_nobody_joined_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE='2'.*each would train by itself.*accelerate\.Accelerator\(\)"):
        tr.train(llava(), "learned_selector", batch, keep=5)
