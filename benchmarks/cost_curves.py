"""What methods themselves cost as pictures grow: 64 tokens kept of 256 to 16,384, and how fast the time rises.

python benchmarks/cost_curves.py [--rounds 3] [--page]

Every method for images that acts behind the tower alone and keeps a number known ahead, outside of any model: random features of
1,024 channels, random signals, one thread, CPU time of the process. ``--page`` writes docs/cost_curves.md and its picture from
the committed data.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from performance import markdown
from rich.progress import track
from torch import Tensor

import tokenreduce as tr
from tokenreduce.eval.bench.timing import spread, take_turns
from tokenreduce.eval.results import surroundings, write_json
from tokenreduce.picture_selection import USUAL, Selection
from tokenreduce.projection import Projector
from tokenreduce.signals import Keys, ProjectorInput, TowerRows

HERE = Path(__file__).resolve().parent
DATA, PAGE, PICTURE = (
    HERE / "results/cost_curves.json",
    HERE.parent / "docs/cost_curves.md",
    HERE.parent / "docs/images/cost_curves.png",
)
SIDES, KEPT, CHANNELS = (16, 32, 64, 128), 64, 1024
LINEAR = 1.25  # power of N up to which a cost counts as linear: caches are left on the way up
#: why the time of a method rises faster
WHY = {
    "divprune": "the first token is the one farthest from its nearest neighbour, which compares all pairs",
    "prunesid": "a table of all pairs tells how alike the tokens of a picture are",
    "zoo_prune": "every token is compared with all others",
}
PLAIN = torch.nn.Linear(CHANNELS, CHANNELS)


def measured() -> list[str]:
    """Methods whose counts are known ahead and that take images."""
    found = []
    for row in tr.methods():
        try:
            tr.selection(row["name"], facts=USUAL, keep=KEPT).count((16, 16))
        except ValueError:
            continue
        if "image" in row["media"]:
            found.append(row["name"])
    return found


def signals(made: Selection, n: int) -> dict[Any, Tensor]:
    torch.manual_seed(0)
    wide = (Keys, ProjectorInput, TowerRows)
    return {
        need: torch.tensor(1)
        if need.axis == "picture"
        else torch.rand((n, CHANNELS) if isinstance(need, wide) else (n,))
        for need in made.needs
    }


def measure(name: str, rounds: int) -> dict[str, Any]:
    made = tr.selection(name, facts=USUAL, keep=KEPT)
    times = []
    for side in SIDES:
        features, given = torch.randn(side * side, CHANNELS), signals(made, side * side)
        projector = Projector(PLAIN, None) if any(isinstance(need, ProjectorInput) for need in made.needs) else None
        call = {name: lambda f=features, s=side, g=given, p=projector: made.reduced(f, (s, s), KEPT, g, p)}
        times.append(spread([1e3 * t for t in take_turns(call, rounds, features.device)[name]]))
    return {"method": name, "ms": times, "power": math.log(times[-1]["median"] / times[-2]["median"], 4)}


def page(data: dict[str, Any]) -> str:
    at = data["environment"]
    rows = [
        {"method": f"`{row['method']}`"}
        | {f"{side * side:,}": f"{t['median']:.3g}" for side, t in zip(SIDES, row["ms"])}
        | {"power of N": f"{row['power']:.2f}", "why": "" if row["power"] <= LINEAR else WHY.get(row["method"], "")}
        for row in sorted(data["rows"], key=lambda row: row["ms"][-1]["median"])
    ]
    return f"""# What methods cost as pictures grow

Written by `python benchmarks/cost_curves.py`: milliseconds of the method's own work, without the signals that it looks at, for
{KEPT} tokens kept of a picture of N, features of {CHANNELS:,} channels; medians of {data["rounds"]} rounds. *Power of N* is from
4,096 to 16,384 tokens: 1 is linear, 2 quadratic. {at["cpu"]}, one thread, CPU time of the process, torch {at["torch"]}, float32
([data](../benchmarks/results/cost_curves.json)).

![Milliseconds by number of tokens, both on a logarithmic scale](images/cost_curves.png)

{markdown(rows)}
"""


def draw(data: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    counts = [side * side for side in SIDES]
    for i, row in enumerate(sorted(data["rows"], key=lambda row: -row["ms"][-1]["median"])):
        axes.loglog(
            counts, [t["median"] for t in row["ms"]], marker="osD^v"[i // 10], label=row["method"], color=f"C{i % 10}"
        )
    axes.set_xticks(counts, [f"{n:,}" for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("tokens N")
    axes.set_ylabel("milliseconds")
    axes.set_title(f"{KEPT} tokens kept of N")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="only write the page, from the committed data")
    options = parser.parse_args()
    if not options.page:
        torch.set_num_threads(1)
        with torch.inference_mode():
            rows = [measure(name, options.rounds) for name in track(measured(), "measuring")]
        facts = {"rounds": options.rounds, "kept": KEPT, "environment": surroundings(torch.device("cpu"))}
        write_json(DATA, {**facts, "rows": rows})
    data = json.loads(DATA.read_text())
    PAGE.write_text(page(data))
    draw(data)


if __name__ == "__main__":
    main()
