"""docs/worth_learning.md and its picture, from what ``learned.py`` measured: ``python benchmarks/learned.py --page``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import tokenreduce as tr
from tokenreduce.eval.statistics import draws, interval

HERE = Path(__file__).resolve().parent
DATA, PAGE = HERE / "results/learned.json", HERE.parent / "docs/worth_learning.md"
PICTURE = HERE.parent / "docs/images/worth_learning.png"
SPLITS = {"test": "1 to 5 objects", "hard": "8 objects"}
COLORS = ("#b0562a", "#7b4fa3", "#2a6fb0", "#3f8f4f")  # of what learns
OPENING, LIMITS = HERE / "learned_opening.md", HERE / "learned_limits.md"
ABOUT = {
    "learned_selector": "keeps what two layers score highest, by token and picture",
    "learned_selector, asks": "does the same, and by the question, too",
    "query_compressor": "writes new rows, each what a query that knows the question reads in a region",
    "rewarded_selector": "keeps what two layers score highest, too; an [example](../examples/learned/rewarded_selector.py) that "
    "learns\n  by rewards for choices drawn at random, where the others learn by gradients through the model",
}


@cache
def drawn(name: str, of: tuple[int, ...] | range) -> np.ndarray:
    """(R, n) how much each of n questions, or seeds, counts in each resample; ``of``: the pictures they belong to."""
    return np.array([np.bincount(d, minlength=len(of)) / len(d) for d in draws(name, of)])


class Split:
    """Accuracies of one split; replicate i of every one is of the same pictures."""

    def __init__(self, data: dict[str, Any], split: str) -> None:
        given = data["settings"]
        self.arms, self.control, self.compared = list(given["arms"]), given["control"], given["compared"]
        self.counts, self.seeds = given["counts"], given["seeds"]
        self.cells = {key: [float(c) for c in cell[split]] for key, cell in data["cells"].items()}
        self.name, self.pictures = split, tuple(data["pictures"][split])

    def runs(self, name: str, count: int) -> np.ndarray:
        """(S, questions) what was right, of each seed; S = 1 of what has none."""
        if name in self.compared:
            return np.array([self.cells[f"{name}|{count}"]])
        return np.array([self.cells[f"{name}|{count}|{seed}"] for seed in self.seeds])

    def best(self, count: int) -> str:
        """What answers most of the methods without training."""
        return max(self.compared, key=lambda name: self.runs(name, count).mean())

    def resampled(self, name: str, count: int) -> np.ndarray:
        """(R,) accuracies with pictures and seeds drawn anew; what is drawn of pictures is the same for all, of seeds its own."""
        runs = self.runs(name, count)
        seeds = drawn(f"{self.name}, {name}", range(len(runs)))
        return (drawn(self.name, self.pictures) @ runs.T * seeds).sum(axis=1)

    def share(self, name: str, count: int, other: str | None = None) -> tuple[float, float, float]:
        """Of right answers, or by how much more than of ``other``; and the ends of its interval."""
        mean, found = self.runs(name, count).mean(), self.resampled(name, count)
        if other is not None:
            mean, found = mean - self.runs(other, count).mean(), found - self.resampled(other, count)
        ends = interval(found.round(9))  # or the sign of nothing would count
        assert ends is not None, name
        return (float(mean), *ends)

    def sign(self, name: str, count: int, other: str) -> int:
        """1 where the whole interval of the difference is above zero, -1 below, 0 where it holds zero."""
        _, low, high = self.share(name, count, other)
        return (low > 0) - (high < 0)

    def points(self, name: str, count: int) -> str:
        """By how many the share is above that of the best, and from where to where; marked by its sign."""
        mean, low, high = (100 * x for x in self.share(name, count, self.best(count)))
        mark = ("_", "", "**")[self.sign(name, count, self.best(count)) + 1]
        return f"{mark}{mean:+.0f}{mark} ({low:+.0f} to {high:+.0f})"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)) + "\n"


def numbers(values: Iterable[object]) -> str:
    """ "1, 2 and 4"."""
    words = list(map(str, values))
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def accuracies(split: Split, tokens: int) -> str:
    rows = []
    for name in (*split.arms, *split.compared, split.control):
        found = (split.share(name, count) for count in split.counts)
        rows.append([f"`{name}`", *(f"{mean:.0%} ({100 * low:.0f} to {100 * high:.0f})" for mean, low, high in found)])
    return table(["kept"] + [f"{count} ({count / tokens:.1%})" for count in split.counts], rows)


def differences(split: Split) -> str:
    rows = [["best without training", *(f"`{split.best(count)}`" for count in split.counts)]]
    rows += [[f"`{name}`", *(split.points(name, count) for count in split.counts)] for name in split.arms]
    return table(["points beside the best"] + [str(count) for count in split.counts], rows)


def where(found: Iterable[tuple[str, int]]) -> str:
    """ "1 to 5 objects, at 1 and 2 tokens; 8 objects, at 1 token", of splits and counts; empty where there are none."""
    counts: dict[str, list[int]] = {}
    for split, count in found:
        counts.setdefault(split, []).append(count)
    return "; ".join(f"{SPLITS[s]}, at {numbers(sorted(n))} token{'s' * (n != [1])}" for s, n in counts.items())


class Cases:
    """Every arm at every count of every split, and where its difference to the best without training has which sign."""

    def __init__(self, splits: list[Split]) -> None:
        self.splits, self.arms = splits, splits[0].arms
        self.all = [(s, arm, count) for s in splits for arm in self.arms for count in s.counts]
        self.signs = [s.sign(arm, count, s.best(count)) for s, arm, count in self.all]

    def listed(self, sign: int) -> str:
        """A line for each arm that has cases of this sign."""
        of = [case for case, own in zip(self.all, self.signs, strict=True) if own == sign]
        lines = {arm: where((s.name, count) for s, name, count in of if name == arm) for arm in self.arms}
        return "".join(f"* `{arm}`: {told}\n" for arm, told in lines.items() if told) or "Nowhere.\n"

    def asking(self) -> str:
        """What reading the question does for the arm that is there with it and without."""
        plain, asks = "learned_selector", "learned_selector, asks"
        signs = {(s.name, count): s.sign(asks, count, plain) for s in self.splits for count in s.counts}
        told = {
            word: where(at for at, own in signs.items() if own == sign) for sign, word in ((1, "gains"), (-1, "loses"))
        }
        return ", ".join(f"{word} ({at})" for word, at in told.items() if at) or "neither gains nor loses anywhere"

    def words(self) -> dict[str, Any]:
        """What the page's opening says of them."""
        counted = {name: self.signs.count(sign) or "none" for name, sign in (("above", 1), ("below", -1), ("level", 0))}
        random = [s.sign(arm, count, s.control) for s, arm, count in self.all]
        apart = [100 * float(np.ptp(s.runs(arm, count).mean(axis=1))) for s, arm, count in self.all]
        split, arm, n = self.all[most := int(np.argmax(apart))]
        top = max(self.all, key=lambda case: case[0].share(*case[1:], case[0].best(case[2]))[0])
        return counted | {
            "cases": len(self.all),
            "arms": len(self.arms),
            "about": "\n".join(f"* `{arm}` {ABOUT[arm]}." for arm in self.arms),
            "pays": self.listed(1),
            "loses": self.listed(-1),
            "open": self.listed(0),
            "top": f"`{top[1]}` at {top[2]} of {SPLITS[top[0].name]}: {top[0].points(*top[1:])}",
            "questions": numbers(sorted({len(s.pictures) for s in self.splits})),
            "above_random": random.count(1),
            "below_random": random.count(-1) or "none",
            "asking_helps": self.asking(),
            "apart": f"`{arm}` with {n} left of {SPLITS[split.name]}, by {apart[most]:.0f} points",
            "median": np.median(apart),
            "chance": 0.05 * len(self.all),
        }


def training(data: dict[str, Any]) -> str:
    given, rows, lost = data["settings"], [], dict.fromkeys(data["settings"]["arms"], 0)
    for name in given["arms"]:
        cells = []
        for count in given["counts"]:
            own = [data["cells"][f"{name}|{count}|{seed}"]["training"] for seed in given["seeds"]]
            loss = {end: np.array([x["loss"][end] for x in own]) for end in ("first", "last")}
            told = f", {loss['first'].mean():.1f} to {loss['last'].mean():.1f}"
            cells.append(f"{np.median([x['cpu_seconds'] for x in own]):.0f} s{told * (name not in given['examples'])}")
            lost[name] += int((loss["last"] > loss["first"]).sum())
        rows.append([f"`{name}`", *cells])
    runs = len(given["counts"]) * len(given["seeds"])
    told = numbers(f"{n} of `{name}`" for name, n in lost.items() if n and name not in given["examples"]) or "none"
    every = table(["seconds, loss", *map(str, given["counts"])], rows)
    return f"{every}\nOf {runs} trainings each, some end with a higher loss than they began with: {told}.\n"


def page(data: dict[str, Any]) -> str:
    given, place = data["settings"], data["environment"]
    cases = Cases(splits := [Split(data, name) for name in SPLITS])
    counts, tokens = given["counts"], given["tokens"]
    reads = {row["name"] for row in tr.methods() if "text" in row["looks_at"]}
    words = cases.words() | {
        "counts": numbers(counts),
        "tokens": tokens,
        "numbers": len(counts),
        "seeds": len(given["seeds"]),
        "compared": len(given["compared"]),
        "asking": numbers(f"`{name}`" for name in given["compared"] if name in reads),
        "trained": given["trained"]["pictures"],
        "steps": given["steps"],
        "batch": given["batch"],
        "parameters": data["parameters"] / 1e6,
    }
    parts = [OPENING.read_text().format(**words)]
    for split in splits:
        whole = np.mean(split.cells["unreduced"])
        parts += [
            f"## {SPLITS[split.name]}: {len(split.pictures)} questions, unreduced {whole:.0%}\n",
            "Right answers, with 95 % intervals by picture and seed.\n",
            accuracies(split, tokens),
            "Points more or fewer than the best without training, paired: **more**, _fewer_, or not to be told.\n",
            differences(split),
        ]
    parts += [
        "## What training costs\n",
        f"CPU seconds of one training, the median of the seeds, on one thread ({place['cpu']}, torch {place['torch']}, "
        f"transformers {place['transformers']}); then the divergence from what the whole model says, in the first tenth of the "
        "steps and in the last, where that is what is learned from.\n",
        training(data),
        LIMITS.read_text().format(**words),
    ]
    return "\n".join(parts)


def picture(data: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2, sharey=True), SPLITS, strict=True):
        split = Split(data, name)
        counts, line = split.counts, {"markersize": 4, "linewidth": 1.4}
        for other in split.compared:
            label = "each without training" if other == split.compared[0] else None
            own = [100 * split.runs(other, count).mean() for count in counts]
            axis.plot(counts, own, color="0.8", linewidth=0.8, label=label)
        best = [100 * split.runs(split.best(count), count).mean() for count in counts]
        axis.plot(counts, best, "o-", color="black", label="best without training", **line)
        shown = [(split.control, "0.55", "--"), *((arm, c, "s-") for arm, c in zip(split.arms, COLORS, strict=False))]
        for arm, color, style in shown:
            seeds = 100 * np.array([split.runs(arm, count).mean(axis=1) for count in counts])
            axis.fill_between(counts, seeds.min(axis=1), seeds.max(axis=1), color=color, alpha=0.22, linewidth=0)
            axis.plot(counts, seeds.mean(axis=1), style, color=color, label=arm, **line)
        axis.axhline(100 * np.mean(split.cells["unreduced"]), color="black", linewidth=0.7, ls=":", label="unreduced")
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, map(str, counts))
        axis.minorticks_off()
        axis.set(title=SPLITS[name], xlabel=f"visual tokens left of {data['settings']['tokens']}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel="right answers, %", ylim=(0, 101))
    figure.axes[1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def write(data: dict[str, Any]) -> None:
    PAGE.write_text(page(data))
    picture(data, PICTURE)
