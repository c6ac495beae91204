"""What methods themselves cost as pictures grow: 64 tokens kept of 256 to 16,384, and how fast time and work rise.

python benchmarks/cost_curves.py [--rounds 3] [--only NAME ...] [--page]

Every method for images that acts behind the vision tower alone and keeps a number known ahead, outside of any model: random
features, random signals, one thread, CPU time of the process. A curve ends where its next point would take more than half a
minute, by the last rise. ``--page`` draws the picture only, from the committed data; the section is part of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tokenreduce as tr
from tokenreduce.eval.bench.timing import seconds, spread
from tokenreduce.eval.results import surroundings, write_json
from tokenreduce.picture_selection import USUAL, Selection
from tokenreduce.projection import Projector
from tokenreduce.signals import Keys, ProjectorInput, TowerRows

HERE = Path(__file__).resolve().parent
DATA, PICTURE = HERE / "results/cost_curves.json", HERE.parent / "docs/images/cost_curves.png"
SIDES, KEPT, CHANNELS = (16, 32, 64, 128), 64, 1024
LONGEST = 30  # seconds of a point, by the last rise, in front of which a curve ends
ONCE = 2  # of one that is measured a single time
LINEAR = 1.15  # power of N up to which work counts as linear: sorting is a little more
#: why the work of some rises faster: what their papers ask for
WHY = {
    "divprune": "begins with the token farthest from its nearest neighbour, of all pairs",
    "pitome": "energy of a token: its cosines with all others",
    "prunesid": "sets look-alikes aside by a table of all pairs",
    "tome": "the best partner of each token among half of the others",
    "vispruner": "drops eight tokens a round, and compares those that are left pair by pair in each",
}
MERGING = {
    "tome": {"at": "projector"},
    "pitome": {"at": "projector"},
}  # what they do in a block, in front of the decoder


class Bytes(TorchDispatchMode):
    """Bytes of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and not func.is_view:
                self.made += made.nbytes
        return out


def selection(name: str) -> Selection:
    return tr.selection(name, facts=USUAL, keep=KEPT, **MERGING.get(name, {}))


def measured() -> list[str]:
    """Methods that take images, whose counts are known ahead."""
    found = []
    for row in tr.methods():
        if "image" not in row["media"]:
            continue
        try:
            selection(row["name"]).count((16, 16))
        except ValueError:
            continue
        found.append(row["name"])
    return found


def call_of(name: str, side: int, channels: int = CHANNELS) -> Callable[[], Any]:
    """The method at work on ``side`` x ``side`` tokens."""
    torch.manual_seed(0)
    made, n = selection(name), side * side
    features, wide = torch.randn(n, channels), (Keys, ProjectorInput, TowerRows)
    given = {
        need: torch.tensor(1)
        if need.axis == "picture"
        else torch.rand((n, channels) if isinstance(need, wide) else (n,))
        for need in made.needs
    }
    asks = any(isinstance(need, ProjectorInput) for need in made.needs)
    projector = Projector(torch.nn.Linear(channels, channels), None) if asks else None
    return lambda: made.reduced(features, (side, side), KEPT, given, projector)


def work(call: Callable[[], Any]) -> dict[str, float]:
    """FLOPs of the matrix products of ``call``, and bytes of all that its operations make."""
    with FlopCounterMode(display=False) as flops, Bytes() as tensors:
        call()
    return {"flops": flops.get_total_flops(), "bytes": tensors.made}


def power(points: list[dict[str, Any]], key: str) -> float:
    """Of N in the rise of ``key`` between the last two points; 0 where there is none of it."""
    (n, before), (more, after) = ((point["tokens"], point[key]) for point in points[-2:])
    return math.log(after / before) / math.log(more / n) if before else 0.0


def work_power(points: list[dict[str, Any]]) -> float:
    """The steeper of FLOPs and bytes."""
    return max(power(points, "flops"), power(points, "bytes"))


def counted(name: str, sides: tuple[int, ...], channels: int = CHANNELS) -> list[dict[str, Any]]:
    """Work of a method by the number of tokens."""
    return [{"tokens": side * side, **work(call_of(name, side, channels))} for side in sides]


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    points = []
    for side in SIDES:
        call, place = call_of(name, side), torch.device("cpu")
        first = seconds(call, place)
        laps = [first] if first > ONCE else [seconds(call, place) for _ in range(rounds)]
        points.append({"tokens": side * side, "ms": spread([1e3 * lap for lap in laps]), **work(call)})
        if not goes_on(points):
            break
    return points


def goes_on(points: list[dict[str, Any]]) -> bool:
    """Whether the next of ``points``, where time rises as between the last two, takes no longer than ``LONGEST``."""
    times = [point["ms"]["median"] / 1e3 for point in points[-2:]]
    return len(times) < 2 or times[1] ** 2 / times[0] <= LONGEST


def section() -> str:
    """What docs/performance.md says of it."""
    data = json.loads(DATA.read_text())
    at, rows = data["environment"], sorted(data["rows"], key=lambda row: row["points"][-1]["ms"]["median"])
    lines = [
        ["method", *(f"{side * side:,}" for side in SIDES), "power of N: time", "FLOPs", "bytes", "faster, because it"]
    ]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        points = row["points"]
        times = [f"{point['ms']['median']:.3g}" for point in points] + [""] * (len(SIDES) - len(points))
        risen = math.log(points[-1]["ms"]["median"] / points[-2]["ms"]["median"]) / math.log(
            points[-1]["tokens"] / points[-2]["tokens"]
        )
        counts = [f"{power(points, key):.2f}" for key in ("flops", "bytes")]
        why = WHY.get(row["method"], "") if work_power(points) > LINEAR else ""
        lines.append([f"`{row['method']}`", *times, f"{risen:.2f}", *counts, why])
    return f"""## Own cost as pictures grow

Milliseconds of a method's own work, without the signals that it looks at, for {KEPT} tokens kept of N, features of {CHANNELS:,}
channels: `python benchmarks/cost_curves.py`, {data["rounds"]} rounds (one where a call takes more than {ONCE} s), float32,
{at["cpu"]}, one thread, CPU time of the process, torch {at["torch"]}; other programs ran beside it
([data](../benchmarks/results/cost_curves.json)). A curve ends where its next point would take more than {LONGEST} s, by
its last rise. Powers of N are those of the last step: 1 is linear, 2 quadratic. FLOPs of matrix products and bytes of all tensors
made are counted, the same on every machine, and a test counts them at smaller sizes; time also rises where what fitted a cache no
longer does. ToMe and PiToMe merge in as many rounds as a tower has blocks.

![Milliseconds by number of tokens, both on a logarithmic scale](images/cost_curves.png)

{chr(10).join("| " + " | ".join(line) + " |" for line in lines)}
"""


def draw(data: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for i, row in enumerate(sorted(data["rows"], key=lambda row: -row["points"][-1]["ms"]["median"])):
        counts, times = zip(*((point["tokens"], point["ms"]["median"]) for point in row["points"]))
        steep = work_power(row["points"]) > LINEAR
        axes.loglog(
            counts,
            times,
            marker="osD^v"[i // 7 % 5],
            ls="--" if steep else "-",
            label=row["method"],
            color=f"C{i % 10}",
        )
    axes.set_xticks([side * side for side in SIDES], [f"{side * side:,}" for side in SIDES])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set_xlabel("tokens N")
    axes.set_ylabel("milliseconds")
    axes.set_title(f"Own cost, {KEPT} tokens kept of N; dashed: work rises faster than N", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(PICTURE)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="measure these methods, and keep what is known of the others")
    parser.add_argument("--page", action="store_true", help="only draw the picture")
    options = parser.parse_args()
    if not options.page:
        torch.set_num_threads(1)
        known = json.loads(DATA.read_text())["rows"] if options.only else []
        rows = [row for row in known if row["method"] not in options.only]
        facts = {"rounds": options.rounds, "kept": KEPT, "channels": CHANNELS}
        for name in options.only or measured():
            rows.append({"method": name, "points": measure(name, options.rounds)})
            print(name, [round(point["ms"]["median"], 2) for point in rows[-1]["points"]], flush=True)
            write_json(DATA, {**facts, "environment": surroundings(torch.device("cpu")), "rows": rows})
    draw(json.loads(DATA.read_text()))


if __name__ == "__main__":
    main()
