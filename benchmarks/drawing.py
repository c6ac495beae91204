"""How long drawing takes: pictures of 1024 pixels for the grids of several models.

python benchmarks/drawing.py [--repeats 15] [--out benchmarks/results/drawing.json]

Traces are made by hand: a quarter of the tokens kept, or all merged into a quarter as many groups, and scores for each.
Arms are interleaved; times are of ``tr.draw`` with caption, from a 1024 x 1024 photograph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import skimage.data
import torch
from PIL import Image
from transformers import CLIPImageProcessor

import tokenreduce as tr
from tokenreduce.eval import demo
from tokenreduce.eval.results import environment, write_json
from tokenreduce.layout import Layout
from tokenreduce.provenance import ImageTrace, StageTrace

SIDE = 1024
CROP = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
GRIDS = {"24 x 24, centre crop": (24, CROP), "36 x 36, dynamic resolution": (36, None), "64 x 64": (64, None)}


def made(grid: int, merge: bool) -> ImageTrace:
    n = grid * grid
    assign = torch.arange(n) // 4 if merge else torch.where(torch.arange(n) % 4 == 0, torch.arange(n) // 4, -1)
    source = torch.arange(0, n, 4)
    score = torch.rand(n, generator=torch.Generator().manual_seed(0))
    stage = StageTrace("projector", None, "made", assign, source, source, None, (), score)
    return ImageTrace(0, Layout(grid, grid), torch.arange(n), (stage,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/drawing.json")
    options = parser.parse_args()
    photo = Image.fromarray(skimage.data.astronaut()).resize((SIDE, SIDE))
    arms = {
        f"{name}, {what}": (made(grid, what == "merged"), processor, what == "scores")
        for name, (grid, processor) in GRIDS.items()
        for what in ("kept", "merged", "scores")
    }
    laps: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.repeats + 1):  # the first round loads fonts and colours
        for name, (trace, processor, heat) in arms.items():
            began = time.perf_counter()
            tr.draw(trace, photo, processor, heat=heat, side=SIDE)
            laps[name].append(time.perf_counter() - began)
    rows = [
        {"arm": name, "median_s": statistics.median(x[1:]), "low_s": min(x[1:]), "high_s": max(x[1:])}
        for name, x in laps.items()
    ]
    model, _ = demo.load()
    write_json(options.out, {"side": SIDE, "repeats": options.repeats, "rows": rows, "environment": environment(model)})
    for row in rows:
        print(f"{row['arm']:<40} {row['median_s']:.3f} s [{row['low_s']:.3f}, {row['high_s']:.3f}]")


if __name__ == "__main__":
    main()
