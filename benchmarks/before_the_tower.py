"""The stage before the tower: what of pages and photographs enters, and what a trained tower makes of a part of a photograph.

python benchmarks/before_the_tower.py [--units 1024 4096]    (writes benchmarks/results/before_the_tower.json)

Pages are made here; their sizes are multiples of a unit, so that no processor resamples them. With the weights of
``tokenreduce.eval.real_tower`` at hand, also what DINOv2-small makes of a part of a photograph. Seconds are in ``tower.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import PAGES
from PIL import Image
from tower import UNIT, build, prompt

import tokenreduce as tr
from tokenreduce.eval.results import environment, write_json

OUT = Path(__file__).parent / "results/before_the_tower.json"
KEEPS = (0.75, 0.5, 0.25)


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
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    model = build(width=80, depth=1)
    found = {
        "pages": [row for units in asked.units for row in pages(model, units)],
        "dinov2_small": trained(),
        "environment": environment(model),
    }
    write_json(asked.out, found)


if __name__ == "__main__":
    main()
