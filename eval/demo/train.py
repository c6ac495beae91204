"""Train the demo model from nothing: ``python -m tokenreduce.eval.demo.train --seed 0 --out DIR``.

Three stages in one run, each a fixed number of steps: the vision tower on per-patch truth, alignment of
projector and word embeddings, then projector and language model on questions with the tower frozen. The seed
fixes initial weights, pictures, questions and every random choice; the last digits also depend on library
versions and thread count.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .language import POINTING_LAYERS, alignment_loss, ask, language_loss, tower_features
from .model import build_model, save
from .scenes import scene
from .tower import POINTING_BLOCKS, SLACK, TowerHeads, collate, tower_loss

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


@dataclass(frozen=True)
class Recipe:
    """Every knob of a run. Steps are optimizer steps; learning rates are peaks of warm-up and cosine."""

    tower_steps: int = 2400
    tower_batch: int = 32
    tower_lr: float = 0.01  # Muon, for matrices inside blocks
    tower_pointing: float = 0.15  # weight of each attention term
    tower_pointing_from: float = 0.2  # share of the steps after which attention terms fade in
    align_steps: int = 250
    align_batch: int = 32
    align_lr: float = 3e-3
    language_steps: int = 3400
    language_batch: int = 24
    language_lr: float = 0.01  # Muon, for matrices inside layers and projector
    language_align: float = 0.5
    language_pointing: float = 0.1
    per_image: int = 16
    other_lr: float = 1.5e-3  # AdamW, for everything else
    warmup: int = 60
    clip: float = 1.0

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with all step counts multiplied, at least 4 each."""
        steps = {key: max(4, round(value * factor)) for key, value in asdict(self).items() if key.endswith("_steps")}
        return Recipe(**{**asdict(self), **steps})


class Optimizers:
    """Muon for ``matrices``, AdamW for ``others``, one warm-up and cosine schedule for both."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float,
        other_lr: float,
        steps: int,
        recipe: Recipe,
    ):
        matrices, others = list(matrices), list(others)
        self.parameters = matrices + others
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.02)
        ]
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.02))
        self.peaks = [part.param_groups[0]["lr"] for part in self.parts]
        self.steps, self.warmup, self.clip = steps, min(recipe.warmup, steps // 4 + 1), recipe.clip

    def step(self, loss: Tensor, number: int) -> None:
        """Back-propagate and update at step ``number`` (0-based)."""
        rest = max(0, number - self.warmup) / max(1, self.steps - self.warmup)
        factor = min(1.0, (number + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * rest))
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for part, peak in zip(self.parts, self.peaks, strict=True):
            part.param_groups[0]["lr"] = peak * max(factor, 0.01)
            part.step()
            part.zero_grad()


def run_stage(
    name: str, steps: int, step: Callable[[int], tuple[Tensor, dict[str, float]]], optimizers: Optimizers
) -> dict:
    """Run one stage; returns its record: steps, wall seconds, and 40 points of the averaged figures."""
    start, curve, window = time.monotonic(), [], []
    every = max(1, steps // 40)
    bar = tqdm(range(steps), desc=name, mininterval=5)
    for number in bar:
        loss, figures = step(number)
        optimizers.step(loss, number)
        window.append(figures)
        if (number + 1) % every == 0 or number + 1 == steps:
            point = {key: round(sum(f[key] for f in window) / len(window), 4) for key in figures}
            curve.append({"step": number + 1, **point})
            bar.set_postfix(point)
            window = []
    return {"steps": steps, "wall_seconds": round(time.monotonic() - start, 1), "curve": curve}


def split_parameters(modules: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices of linear layers, and all other parameters."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for module in modules:
        for part in module.modules():
            for name, value in part.named_parameters(recurse=False):
                (matrices if isinstance(part, nn.Linear) and name == "weight" else others).append(value)
    return matrices, others


def train_tower(model: LlavaForConditionalGeneration, seed: int, recipe: Recipe) -> dict:
    """Stage 1. Up to twelve objects per picture; see `tower.tower_loss`."""
    tower = model.model.vision_tower
    heads = TowerHeads()
    matrices, others = split_parameters([tower])
    optimizers = Optimizers(
        matrices, [*others, *heads.parameters()], recipe.tower_lr, recipe.other_lr, recipe.tower_steps, recipe
    )
    begin = recipe.tower_pointing_from * recipe.tower_steps

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        size = recipe.tower_batch
        batch = collate([scene("crowd", seed, number * size + i) for i in range(size)])
        fade = min(1.0, max(0.0, (number - begin) / (0.5 * begin + 1)))
        return tower_loss(tower, heads, batch, recipe.tower_pointing * fade)

    return run_stage("tower", recipe.tower_steps, step, optimizers)


def train_alignment(model: LlavaForConditionalGeneration, seed: int, recipe: Recipe) -> dict:
    """Stage 2a. Projector and word embeddings only."""
    projector, words = model.model.multi_modal_projector, model.get_input_embeddings()
    optimizers = Optimizers(
        [], [*projector.parameters(), *words.parameters()], 0.0, recipe.align_lr, recipe.align_steps, recipe
    )

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        size = recipe.align_batch
        batch = collate([scene("crowd", seed, 10_000_000 + number * size + i) for i in range(size)])
        loss = alignment_loss(model, projector(tower_features(model, batch.pixels)), batch)
        return loss, {"loss": float(loss.detach())}

    return run_stage("align", recipe.align_steps, step, optimizers)


def train_language(model: LlavaForConditionalGeneration, seed: int, recipe: Recipe) -> dict:
    """Stage 2b. First half: 22-84 image tokens; then 20-143 and all 144 in turn. No object is ever lost."""
    layers, projector = model.model.language_model.layers, model.model.multi_modal_projector
    matrices, others = split_parameters([layers, projector])
    for part in (model.get_input_embeddings(), model.lm_head, model.model.language_model.norm):
        others += part.parameters()
    optimizers = Optimizers(matrices, others, recipe.language_lr, recipe.other_lr, recipe.language_steps, recipe)
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        size = recipe.language_batch
        batch = ask("train", seed, [scene("train", seed, number * size + i) for i in range(size)], recipe.per_image)
        first = number < recipe.language_steps // 2
        keep = draw(22, 84) if first else draw(20, 143) if number % 2 else 144
        original = draw(0, 1) == 1
        return language_loss(model, batch, keep, original, recipe.language_align, recipe.language_pointing, generator)

    return run_stage("language", recipe.language_steps, step, optimizers)


def train(seed: int, recipe: Recipe, checkpoints: Path | None = None) -> tuple[LlavaForConditionalGeneration, dict]:
    """Run all stages; the model (float32) and its record. ``checkpoints`` receives a state dict per stage."""
    model = build_model(seed)
    model.set_attn_implementation("eager")  # attention weights are part of the losses
    model.train()
    record: dict = {
        "seed": seed,
        "recipe": asdict(recipe),
        "pointing": {"blocks": POINTING_BLOCKS, "layers": POINTING_LAYERS, "slack_nats": SLACK},
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "stages": {},
    }
    for name, stage in (("tower", train_tower), ("align", train_alignment), ("language", train_language)):
        record["stages"][name] = stage(model, seed, recipe)
        model.model.vision_tower.requires_grad_(False)
        if checkpoints is not None:
            checkpoints.mkdir(parents=True, exist_ok=True)
            torch.save({"state": model.state_dict(), "record": record}, checkpoints / f"{name}.pt")
    record["wall_seconds"] = round(sum(stage["wall_seconds"] for stage in record["stages"].values()), 1)
    return model.eval(), record


def _versions() -> dict[str, str]:
    import numpy
    import PIL
    import tokenizers
    import transformers

    modules = {
        "torch": torch,
        "transformers": transformers,
        "tokenizers": tokenizers,
        "numpy": numpy,
        "pillow": PIL,
    }
    return {
        "python": platform.python_version(),
        **{name: str(module.__version__) for name, module in modules.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Command line: train, save, evaluate, write the model card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, records and card")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all step counts; 1 is the shipped run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoints", type=Path, help="folder for one state dict per stage")
    parser.add_argument("--skip-evaluation", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model, record = train(args.seed, Recipe().scaled(args.scale), args.checkpoints)
    save(model, args.out)
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    if not args.skip_evaluation:
        from .evaluate import main as evaluate

        evaluate(["--weights", str(args.out), "--threads", str(args.threads)])


if __name__ == "__main__":
    main()
