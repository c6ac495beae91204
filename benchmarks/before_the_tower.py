"""The stage before the vision tower: how much faster the tower is, what choosing costs, what of pages and photographs enters.

python benchmarks/before_the_tower.py [--units 1024 4096] [--width 320] [--depth 32] [--rounds 5] [--threads 1] [--check]

A Qwen2.5-VL with random weights: the tower's real depth, heads of 80 and windows, ``--width`` channels (1,280 in the real one),
in front of a language model of one layer. Arms take turns within a round on one model; a speed-up is the median over rounds of
unreduced time over reduced time, both of the tower alone, the choice of units and what it moves included. Pages are made here;
their sizes are multiples of a unit, so that no processor resamples them. ``--check``: one round of the smallest size, no file.
With the weights of ``tokenreduce.eval.real_tower`` at hand, also what DINOv2-small makes of a part of a photograph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import PAGES, screenshot
from PIL import Image
from tower import END, IMAGE, START, build
from transformers import Qwen2VLImageProcessor

import tokenreduce as tr
from tokenreduce.eval.results import environment, write_json

OUT = Path(__file__).parent / "results/before_the_tower.json"
UNIT = 28
ARMS: dict[str, Callable[[], tr.Method]] = {
    "uniform, keep=0.5": lambda: tr.Uniform(keep=0.5, at="pixels"),
    "pixelprune, keep=0.5": lambda: tr.PixelPrune(keep=0.5),
    "pixelprune": lambda: tr.PixelPrune(),
}
KEEPS = (0.75, 0.5, 0.25)


def prompt(image: Image.Image) -> dict[str, torch.Tensor]:
    """One picture as the processor hands it over, between two words."""
    seen = Qwen2VLImageProcessor(max_pixels=10**9)(images=[image], return_tensors="pt")
    n = int(seen["image_grid_thw"][0].prod()) // 4
    ids = torch.tensor([[9, START, *[IMAGE] * n, END, 8]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        **{name: seen[name] for name in ("pixel_values", "image_grid_thw")},
    }


class Watch:
    """Seconds of the tower's latest pass and what entered its first block; put on before wrapping, so that all of it is seen."""

    def __init__(self, model: Any) -> None:
        tower = model.model.visual
        tower.register_forward_pre_hook(self.begin)
        tower.register_forward_hook(self.end)

    def begin(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def once(model: Any, inputs: dict[str, torch.Tensor], watch: Watch, method: tr.Method | None) -> tuple[float, Any]:
    with torch.no_grad():
        if method is None:
            model(**inputs)
            return watch.seconds, None
        with tr.wrapped(model, method):
            model(**inputs)
            return watch.seconds, tr.report(model)


def speed(model: Any, watch: Watch, units: int, rounds: int) -> list[dict[str, Any]]:
    """Each arm against the unreduced tower, run just before it."""
    inputs = prompt(screenshot(UNIT * round(units**0.5)))
    once(model, inputs, watch, None)
    rows = []
    for name, make in ARMS.items():
        ratios, own, report = [], [], None
        for _ in range(rounds):
            bare, _ = once(model, inputs, watch, None)
            reduced, report = once(model, inputs, watch, make())
            ratios.append(bare / reduced)
            own.append(report.method_ms / 1e3 / bare)
        cost = report.by_stage["tower"]
        ideal = cost.flops_unreduced / cost.flops
        median = statistics.median(ratios)
        rows.append(
            {
                "arm": name,
                "units": units,
                "kept": report.tokens_kept[0][0] / report.tokens_in[0][0],
                "speed_up": median,
                "low": min(ratios),
                "high": max(ratios),
                "flops_ideal": ideal,
                "of_ideal": median / ideal,
                "own_share_of_tower": statistics.median(own),
            }
        )
    return rows


def pages(model: Any, units: int) -> list[dict[str, Any]]:
    """Kept share of each kind of page, and the largest difference of what enters the first block for the kept ones."""
    first, rows = model.model.visual.blocks[0], []
    for kind, make in PAGES.items():
        inputs = prompt(make(UNIT * round(units**0.5)))
        seen: list[torch.Tensor] = []

        def note(module: Any, args: Any, kwargs: Any, seen: list[torch.Tensor] = seen) -> None:
            seen.append(args[0].clone())
            raise StopIteration  # the rest of the tower is not asked

        def entering(seen: list[torch.Tensor] = seen, inputs: dict[str, torch.Tensor] = inputs) -> torch.Tensor:
            handle = first.register_forward_pre_hook(note, with_kwargs=True)
            try:
                with torch.no_grad():
                    model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
            except (StopIteration, RuntimeError):
                pass
            finally:
                handle.remove()
            return seen[-1]

        whole = entering()
        for tau in (0.0, 0.02):
            with tr.wrapped(model, tr.PixelPrune(threshold=tau)):
                part = entering()
            places = {row.numpy().tobytes() for row in whole}
            rows.append(
                {
                    "page": kind,
                    "units": units,
                    "threshold": tau,
                    "kept": len(part) / len(whole),
                    "rows_that_differ": sum(row.numpy().tobytes() not in places for row in part),
                }
            )
    return rows


def trained() -> list[dict[str, Any]]:
    """Cosine to the whole tower's features of [CLS] and of the patches that entered, on photographs; [] without weights."""
    import skimage.data

    from tokenreduce.eval import real_tower

    try:
        tower = real_tower.load()
    except ImportError as error:
        print(f"DINOv2-small left out: {error}")
        return []
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    names = ("astronaut", "chelsea", "coffee", "rocket")
    made = [Image.fromarray(getattr(skimage.data, n)()).convert("RGB").resize((518, 518)) for n in names]
    pixels = torch.stack([(torch.tensor(np.asarray(p)) / 255 - mean) / std for p in made]).permute(0, 3, 1, 2)
    rows = []
    with torch.no_grad():
        whole = tower(pixels).last_hidden_state
        arms = {"uniform, at='pixels'": lambda k: tr.Uniform(keep=k, at="pixels"), "tome": lambda k: tr.ToMe(keep=k)}
        for name, make in arms.items():
            for keep in KEEPS:
                with tr.wrapped(tower, make(keep)):
                    out, report = tower(pixels).last_hidden_state, tr.report(tower)
                    kept = [image.kept() + 1 for image in tr.trace(tower).images]
                near = torch.cosine_similarity(out, whole, dim=-1)
                patches = torch.stack([row[own].mean() for row, own in zip(near, kept)])
                rows.append(
                    {
                        "arm": name,
                        "keep": keep,
                        "cls": float(near[:, 0].mean()),
                        "cls_lowest": float(near[:, 0].min()),
                        "kept_patches": float(patches.mean()),
                        "flops": report.flops / report.flops_unreduced,
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.check:
        options.units, options.rounds = options.units[:1], 1
    model = build(options.width, options.depth)
    watch = Watch(model)
    found: dict[str, Any] = {
        "tower": {name: getattr(options, name) for name in ("width", "depth", "rounds", "threads")},
        "speed": [row for units in options.units for row in speed(model, watch, units, options.rounds)],
        "pages": [row for units in options.units for row in pages(model, units)],
        "dinov2_small": trained(),
        "environment": environment(model),
    }
    for table in ("speed", "pages", "dinov2_small"):
        for row in found[table]:
            print("  ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
    if not options.check:
        write_json(options.out, found)


if __name__ == "__main__":
    main()
