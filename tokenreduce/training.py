"""Train what a method learns, beside a frozen model: by what that model says with all tokens, or by given answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenreduce.adapters.registry import family_of
from tokenreduce.attachment import attachment_of, is_wrapped, plain_model
from tokenreduce.learned_method import LearnedMethod
from tokenreduce.learned_module import Learned
from tokenreduce.registry import make
from tokenreduce.training_group import TrainingGroup
from tokenreduce.training_settings import TrainingSettings
from tokenreduce.training_state import follow, load_state, save_state
from tokenreduce.training_step import TrainingStep
from tokenreduce.validation import whole
from tokenreduce.weights import Weights
from tokenreduce.wrapping import wrapped

Data = Sequence[Mapping[str, Any]] | Callable[[int], Mapping[str, Any]]
CLIP = 1.0  # norm of a gradient


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        weights: not saved yet; ``weights.save(path)``.
        losses: the loss of each step.
    """

    weights: Weights
    losses: tuple[float, ...]

    def draw(self, path: str | PathLike[str]) -> None:
        """Write the curve of the loss as a picture: each step, and the mean of the twentieth of the steps before it."""
        from matplotlib.figure import Figure

        window = max(1, len(self.losses) // 20)
        means = [
            sum(own) / len(own)
            for own in (self.losses[max(0, i - window + 1) : i + 1] for i in range(len(self.losses)))
        ]
        axes = (figure := Figure(figsize=(6, 3.2), layout="constrained")).subplots()
        axes.plot(self.losses, color="0.75", linewidth=0.8, label="each step")
        axes.plot(means, color="black", label=f"mean of {window}")
        axes.set(xlabel="step", ylabel=self.weights.header.training["loss"], yscale="log")
        axes.legend(frameon=False)
        figure.savefig(Path(path), dpi=120)


def train(
    model: Any,
    method: str | LearnedMethod | type[LearnedMethod],
    data: Data,
    *,
    checkpoint: str | PathLike[str] | None = None,
    every: int = 50,
    progress: bool = False,
    settings: TrainingSettings | None = None,
    **parameters: Any,
) -> Trained:
    """Train the weights of ``method`` on ``data``, ``model`` being frozen and left as it was.

    Args:
        model: a vision-language model that is not wrapped, on its device and in its dtype.
        method: a method that learns, or its name; with weights it goes on from them.
        data: what the model is called with at each step, a sequence that is gone through in a new order each time, or a
            function of the step. Of P processes that train together (torch.distributed), process p takes number P s + p at step
            s. Where there are ``labels``, (B, L), the loss is that of the tokens they name; else that of the last token of
            each prompt.
        checkpoint: a .safetensors file to go on from where it is there, written ``every`` so many steps and removed at the end.
            Of several processes the first writes it, and all read it. On one CPU, a run that was killed gives the same
            weights as one that was not.
        progress: show a bar.
        settings: loss, steps, learning rate and so on.
        parameters: of the method, such as ``keep``, the number of tokens it is trained for.

    Errors: ``ValueError`` for a method that is none to train, a model that is wrapped, a checkpoint of another run.
    """
    made, settings = make(method, **parameters), settings or TrainingSettings()
    whole("every", every, 1)
    if not isinstance(made, LearnedMethod) or not made.trains:
        raise ValueError(
            f"method={made.name!r} has nothing to train; allowed: a method that learns, as learned_selector"
        )
    if is_wrapped(model):
        raise ValueError("model is wrapped; call tr.unwrap(model) first, training wraps it by itself")
    if not callable(data) and not len(data):
        raise ValueError(
            "data is empty; allowed: a sequence of what the model is called with, or a function of the step"
        )
    group = TrainingGroup.joined()
    path, facts = None if checkpoint is None else Path(checkpoint), family_of(plain_model(model)).offers()
    start = "" if made.weights is None else Weights.of(made.weights).sha256
    header = made.header(
        facts, {**dataclasses.asdict(settings), "keep": made.keep, "start": start, "processes": group.size}
    )
    # of their own: others may hold the module that given weights already have beside them
    given = Weights.made(header, made.untrained(facts)) if made.weights is None else Weights.of(made.weights).copy()
    made = dataclasses.replace(made, weights=given)
    with _frozen(model), wrapped(model, made), ExitStack() as shown:
        (learned,) = attachment_of(model).hooks.pipeline.learned.values()
        assert learned is not None, "a method with weights has a module"
        with _training(learned, settings):
            optimizer = torch.optim.AdamW(learned.module.parameters(), lr=settings.learning_rate, weight_decay=0.0)
            losses = load_state(path, header, learned.module, optimizer)
            learned.share = group.rank, group.size
            group.agree("weights, settings or steps", (Weights.made(header, learned.module).sha256, len(losses)))
            tell = _bar(shown, settings.steps, len(losses)) if progress and group.rank == 0 else lambda loss: None
            for step in range(len(losses), settings.steps):
                inputs = dict(_at(data, step * group.size + group.rank, settings.seed))
                labels = inputs.pop("labels", None)
                now = TrainingStep(model, facts, learned, inputs, labels, settings, step)
                losses.append(_step(made, optimizer, now, group))
                tell(losses[-1])
                if path is not None and group.rank == 0 and (step + 1) % every == 0:
                    save_state(path, header, learned.module, optimizer, losses)
            weights = Weights.made(header, learned.module)
    if path is not None and group.rank == 0:
        path.unlink(missing_ok=True)
    group.wait()  # or another run would find that file
    return Trained(weights, tuple(losses))


def _step(made: LearnedMethod, optimizer: torch.optim.Optimizer, step: TrainingStep, group: TrainingGroup) -> float:
    settings, learned = step.settings, step.learned
    learned.temperature = settings.soft(step.number)
    learned.generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step.number)
    losses = made.lesson(step).reshape(-1)
    found = losses.sum() / group.total(len(losses), losses)
    for own in optimizer.param_groups:
        own["lr"] = settings.rate(step.number)
    optimizer.zero_grad()
    found.backward()
    group.sum_gradients(learned.module.parameters())
    nn.utils.clip_grad_norm_(learned.module.parameters(), CLIP)
    follow(optimizer)
    optimizer.step()
    return float(group.summed(found.detach()))


def _at(data: Data, step: int, seed: int) -> Mapping[str, Any]:
    if callable(data):
        return data(step)
    epoch, index = divmod(step, len(data))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return data[int(order[index])]


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of ``model`` learns, and nothing in it is drawn at random."""
    asked, modes = ([(p, p.requires_grad) for p in model.parameters()], [(m, m.training) for m in model.modules()])
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was in asked:
            parameter.requires_grad_(was)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _training(learned: Learned, settings: TrainingSettings) -> Iterator[None]:
    learned.relax = settings.relax
    learned.module.float().train().requires_grad_(True)
    try:
        yield
    finally:
        learned.module.eval().requires_grad_(False)


def _bar(shown: ExitStack, steps: int, done: int) -> Callable[[float], None]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(TextColumn("training"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    shown.enter_context(bar)
    task = bar.add_task("", total=steps, completed=done, loss="")
    return lambda loss: bar.update(task, advance=1, loss=f"loss {loss:.4f}")
