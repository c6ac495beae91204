"""Every image method on the demo model's questions, against random at equal mean tokens: data, a page and its picture.

python benchmarks/ranking.py [--test 60] [--hard 30] [--only divprune,holov] [--page]

Accuracy at 50, 25, 11 and 5 % of 144 tokens, per kind of question, with bootstrap intervals by picture. The control is ``random``
at the same number of tokens averaged over the decoder's layers, interpolated between measured counts, three seeds. Results are
kept per method and budget: a run that was stopped goes on, and ``--page`` writes docs/ranking.md from what is there.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

import tokenreduce as tr
from tokenreduce.eval import demo
from tokenreduce.eval.demo import right
from tokenreduce.eval.demo.measure import Bench, servable
from tokenreduce.eval.demo.scene_questions import KINDS, questions
from tokenreduce.eval.results import environment, write_json
from tokenreduce.eval.statistics import RESAMPLES, draws, interval
from tokenreduce.registry import make

HERE = Path(__file__).resolve().parent
DATA = HERE / "results/ranking.json"
KEEPS = (0.5, 0.25, 0.11, 0.05)
TOKENS = 144
LADDER = (4, 7, 12, 16, 24, 36, 48, 72, 108)  # counts at which random is measured; the unreduced model is 144
SEEDS = (0, 1, 2)
PER_IMAGE = 6
CONTROL = "random"
#: methods whose average over the layers cannot be as low as that: the budget is what they leave at last
LEFT_AT_LAST = {"pyramiddrop": lambda keep: tr.PyramidDrop(ratios=(keep ** (1 / 3), keep ** (2 / 3), keep))}


def answered(bench: Bench, *methods: Any) -> tuple[list[bool], float]:
    """Whether each question is answered right, and the visual tokens of a decoder layer, averaged over layers."""
    if not methods:
        return [right(r, q.answer) for r, q in zip(bench.replies(), bench.asked)], float(TOKENS)
    with tr.wrapped(bench.model, *methods):
        marks = [right(r, q.answer) for r, q in zip(bench.replies(), bench.asked)]
        report = tr.report(bench.model)
    pictures = sum(map(len, report.tokens_in))
    return marks, sum(report.equivalent_tokens) / pictures


def jobs(model: Any, only: list[str] | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Methods to run by their key, and why others cannot be."""
    names = [row["name"] for row in tr.methods()]
    refused = servable(model, [name for name in names if name not in LEFT_AT_LAST], KEEPS)
    found: dict[str, Any] = {"unreduced": ()}
    for count in LADDER:
        found |= {f"{CONTROL}|{count}|{seed}": (tr.Random(keep=count, seed=seed),) for seed in SEEDS}
    for name in names:
        if name in refused or name == CONTROL or (only and name not in only):
            continue
        found |= {f"{name}|{keep}": (LEFT_AT_LAST.get(name, partial(make, name))(keep=keep),) for keep in KEEPS}
    return found, refused


def run(options: argparse.Namespace) -> None:
    model, processor = demo.load()
    todo, refused = jobs(model, options.only.split(",") if options.only else None)
    data = json.loads(DATA.read_text()) if DATA.exists() else {"cells": {}}
    settings = {"test": options.test, "hard": options.hard, "per_image": PER_IMAGE, "keeps": KEEPS, "seeds": SEEDS}
    if data.get("settings", settings | {"keeps": list(KEEPS), "seeds": list(SEEDS)}) != json.loads(
        json.dumps(settings)
    ):
        raise SystemExit(f"{DATA} holds results of {data['settings']}; move it away to measure {settings}")
    data |= {"settings": settings, "environment": environment(model), "refused": refused, "tokenreduce": tr.__version__}
    splits = {"test": options.test, "hard": options.hard}
    with Progress() as bar:
        task = bar.add_task("", total=len(todo) * len(splits))
        for split, images in splits.items():
            bench = Bench(model, processor, questions(split, images, 0, PER_IMAGE))
            data.setdefault("kinds", {})[split] = [q.kind for q in bench.asked]
            data.setdefault("pictures", {})[split] = [q.index for q in bench.asked]
            for key, given in todo.items():
                bar.update(task, description=f"{split} {key}", advance=1)
                if f"{split}|{key}" in data["cells"]:
                    continue
                marks, tokens = answered(bench, *given)
                data["cells"][f"{split}|{key}"] = {"right": "".join("01"[m] for m in marks), "tokens": tokens}
                write_json(DATA, data)


# ---------------------------------------------------------------------- what the data says


class Split:
    """Resampled accuracies of one split; replicate i of every cell is of the same pictures."""

    def __init__(self, data: dict[str, Any], split: str) -> None:
        self.marks = {
            key.partition("|")[2]: np.array([c == "1" for c in cell["right"]], dtype=float)
            for key, cell in data["cells"].items()
            if key.startswith(f"{split}|")
        }
        self.tokens = {
            key.partition("|")[2]: cell["tokens"] for key, cell in data["cells"].items() if key.startswith(f"{split}|")
        }
        self.kinds = np.array(data["kinds"][split])
        self.drawn = list(draws(split, data["pictures"][split]))
        counts = (*LADDER, TOKENS)
        self.control = {
            count: np.mean([self.marks[f"{CONTROL}|{count}|{seed}"] for seed in SEEDS], axis=0) for count in LADDER
        } | {TOKENS: self.marks["unreduced"]}
        self.counts = counts

    def of_random(self, tokens: float) -> np.ndarray:
        """(questions,) chance of a right answer with ``tokens`` random tokens, interpolated between measured counts."""
        above = next(i for i, count in enumerate(self.counts) if count >= tokens - 1e-9)
        if above == 0:
            return self.control[self.counts[0]]
        low, high = self.counts[above - 1], self.counts[above]
        share = (tokens - low) / (high - low)
        return (1 - share) * self.control[low] + share * self.control[high]

    def row(self, key: str) -> dict[str, Any]:
        """Accuracy of a cell, and by how much it is above random at equal mean tokens, each with its interval."""
        marks, chance = self.marks[key], self.of_random(self.tokens[key])
        resampled = np.array([(marks[d].mean(), (marks - chance)[d].mean()) for d in self.drawn])
        assert len(resampled) == RESAMPLES
        return {
            "accuracy": marks.mean(),
            "interval": interval(resampled[:, 0]),
            "tokens": self.tokens[key],
            "gain": (marks - chance).mean(),
            "gain_interval": interval(resampled[:, 1]),
            "by_kind": {kind: marks[self.kinds == kind].mean() for kind in KINDS if (self.kinds == kind).any()},
            "gain_by_kind": {
                kind: (marks - chance)[self.kinds == kind].mean() for kind in KINDS if (self.kinds == kind).any()
            },
        }


def ranked(data: dict[str, Any]) -> tuple[list[str], dict[tuple[str, str, float], dict[str, Any]]]:
    """Methods by their mean gain over random on the test split, best first, and all their rows."""
    splits = {split: Split(data, split) for split in ("test", "hard")}
    names = list(dict.fromkeys(key.split("|")[1] for key in data["cells"]))
    names = [n for n in names if all(f"{s}|{n}|{k}" in data["cells"] for s in splits for k in KEEPS)]
    rows = {(s, n, k): split.row(f"{n}|{k}") for s, split in splits.items() for n in names for k in KEEPS}
    names.sort(key=lambda n: -np.mean([rows["test", n, k]["gain"] for k in KEEPS]))
    return names, rows


def verdict(row: dict[str, Any]) -> str:
    low, high = row["gain_interval"]
    return "**" if low > 0 else "_" if high < 0 else ""


def page(data: dict[str, Any]) -> str:
    names, rows = ranked(data)
    whole = {s: np.mean([c == "1" for c in data["cells"][f"{s}|unreduced"]["right"]]) for s in ("test", "hard")}
    lines = [(HERE / "ranking_opening.md").read_text().rstrip()]
    for split, about in (("test", "1 to 5 objects"), ("hard", "8 objects")):
        asked = len(data["kinds"][split])
        lines += [
            f"\n## {split}: {about}, {asked} questions, unreduced {whole[split]:.1%}\n",
            "| method | " + " | ".join(f"{k:.0%}" for k in KEEPS) + " |",
            "| --- |" + " ---: |" * len(KEEPS),
        ]
        for name in names:
            cells = []
            for keep in KEEPS:
                row = rows[split, name, keep]
                mark = verdict(row)
                mean = "" if abs(row["tokens"] - round(keep * TOKENS)) < 1 else f", {row['tokens']:.0f} tokens"
                cells.append(f"{row['accuracy']:.0%} ({mark}{100 * row['gain']:+.0f}{mark}{mean})")
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["\n## By kind of question, at 11 %, test\n"]
    lines += ["| method | " + " | ".join(KINDS) + " |", "| --- |" + " ---: |" * len(KINDS)]
    for name in names:
        row = rows["test", name, 0.11]
        cells = (f"{row['by_kind'][k]:.0%} ({100 * row['gain_by_kind'][k]:+.0f})" for k in KINDS)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    because: dict[str, list[str]] = {}
    for name, why in data["refused"].items():
        because.setdefault(why, []).append(f"`{name}`")
    left = [f"{', '.join(names)}: {why}" for why, names in because.items()]
    lines += ["\nLeft out: " + "; ".join(left) + ".\n" if left else ""]
    place = data["environment"]
    lines += [
        (HERE / "ranking_reasons.md").read_text().rstrip(),
        f"\nMade by `python benchmarks/ranking.py` ({place['cpu']}, torch {place['torch']}, transformers "
        f"{place['transformers']}); data: [ranking.json](../benchmarks/results/ranking.json).",
    ]
    return "\n".join(lines) + "\n"


def picture(data: dict[str, Any], path: Path) -> None:
    """Gain over random at equal mean tokens: a row per method, a column per budget; one hue per sign, light is nothing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names, rows = ranked(data)
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 0.32 * len(names) + 1.2), sharey=True, layout="constrained")
    for ax, split in zip(axes, ("test", "hard")):
        gain = np.array([[100 * rows[split, n, k]["gain"] for k in KEEPS] for n in names])
        image = ax.imshow(gain, cmap="PuOr", vmin=-60, vmax=60, aspect="auto")
        for (y, x), value in np.ndenumerate(gain):
            sure = bool(verdict(rows[split, names[y], KEEPS[x]]))
            dark = abs(value) > 36
            ax.text(
                x, y, f"{value:+.0f}", ha="center", va="center", fontsize=8,
                color="white" if dark else "black", fontweight="bold" if sure else "normal",
            )  # fmt: skip
        ax.set_xticks(range(len(KEEPS)), [f"{k:.0%}" for k in KEEPS])
        ax.set_title({"test": "1 to 5 objects", "hard": "8 objects"}[split], fontsize=10)
        ax.tick_params(length=0)
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    figure.colorbar(image, ax=axes, label="points above random at equal mean tokens", shrink=0.8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=int, default=60, help="pictures of the test split")
    parser.add_argument("--hard", type=int, default=30, help="pictures of the hard split")
    parser.add_argument("--only", help="methods, joined by commas; default: all")
    parser.add_argument("--page", action="store_true", help="only write the page from the data that is there")
    options = parser.parse_args()
    if not options.page:
        run(options)
    data = json.loads(DATA.read_text())
    (HERE.parent / "docs/ranking.md").write_text(page(data))
    picture(data, HERE.parent / "docs/images/ranking.png")


if __name__ == "__main__":
    main()
