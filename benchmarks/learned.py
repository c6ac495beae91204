"""Is learning worth it? What `tr.train` makes in a minute, beside methods that need no training, at equal counts of tokens.

python benchmarks/learned.py [--quick] [--page]    (writes results/learned.json, docs/worth_learning.md and its picture)

The demo model answers questions about pictures that were not trained on, of textures that no training picture has; nor were
these pictures asked about when `ranking.py` chose the methods to compare with. What learns is trained for each count with three
seeds, from what the model says with all tokens, on one thread: all of it takes some fifty minutes. Results are kept one by one. A
run that was stopped goes on, counts, seeds and arms may come to those that are there; but settings, versions, sources and weights
of the demo model have to be the same, or it is refused.
"""

from __future__ import annotations

import argparse
import csv
import json
import reprlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learned_page import DATA, SPLITS, page, write
from rich.progress import Progress

import tokenreduce as tr
from tokenreduce import own_methods
from tokenreduce.adapters.registry import family_of
from tokenreduce.cli.train import Asked, batches
from tokenreduce.eval import demo
from tokenreduce.eval.demo.measure import Bench
from tokenreduce.eval.results import as_json, environment, write_json
from tokenreduce.eval.sweep.hashes import combined, file_hash, folder_hashes, source_hash
from tokenreduce.registry import make

HERE = Path(__file__).resolve().parent
BEST_KNOWN = Path(tr.__file__).parent / "best_known.csv"
CANDIDATES = 5  # methods without training to compare with
#: what learns, with its parameters; all leave exactly the count that they are told
ARMS: dict[str, dict[str, Any]] = {
    "learned_selector": {},
    "learned_selector, asks": {"asks": True},
    "query_compressor": {},
    "rewarded_selector": {},
}
EXAMPLES = {"rewarded_selector": HERE.parent / "examples/learned/rewarded_selector.py"}  # arms that no release has
FULL: dict[str, Any] = {
    "tokens": 144,
    "counts": [16, 7, 4, 2, 1],
    "seeds": [0, 1, 2],
    "steps": 200,
    "batch": 8,
    "trained": {"pictures": 800, "per_image": 4},
    "asked": {"first": 1000, "pictures": {"test": 60, "hard": 60}, "per_image": 6},
    "control": "random",
}
QUICK: dict[str, Any] = {
    "counts": [16, 1],
    "seeds": [0, 1],
    "steps": 2,
    "batch": 2,
    "trained": {"pictures": 2, "per_image": 2},
    "asked": {"first": 1000, "pictures": {"test": 3, "hard": 2}, "per_image": 3},
}


def compared(tokens: int) -> list[str]:
    """The methods that leave exactly the budget, of highest accuracy at 11 and 5 % of both splits of `ranking.py`."""
    found: dict[str, list[float]] = {}
    with BEST_KNOWN.open(newline="") as file:
        for row in csv.DictReader(file):
            keep, share = float(row["keep"]), float(row["token_share"])
            if row["kind"] == "photo" and keep <= 0.11 and round(share * tokens) == round(keep * tokens):
                found.setdefault(row["method"], []).append(float(row["relative"]))
    whole = {name: sum(own) / len(own) for name, own in found.items() if len(own) == 2 * len(SPLITS)}
    return sorted(whole, key=lambda name: -whole[name])[:CANDIDATES]


def settings(quick: bool) -> dict[str, Any]:
    own = FULL | (QUICK if quick else {})
    examples = {name: file_hash(file) for name, file in EXAMPLES.items()}
    return own | {"arms": ARMS, "examples": examples, "compared": compared(own["tokens"])}


class Measured:
    """The model with the questions of both splits."""

    def __init__(self, given: dict[str, Any]) -> None:
        own_methods.load(str(file) for file in EXAMPLES.values())
        self.model, self.processor = demo.load()
        self.given, trained, asked = given, given["trained"], given["asked"]
        shown = demo.questions("train", trained["pictures"], per_image=trained["per_image"])
        self.shown = [Asked(q.image, demo.prompt(q.question), "") for q in shown]
        self.benches = {
            split: Bench(
                self.model,
                self.processor,
                demo.questions(split, range(asked["first"], asked["first"] + pictures), per_image=asked["per_image"]),
            )
            for split, pictures in asked["pictures"].items()
        }

    def conditions(self) -> dict[str, Any]:
        """What results depend on besides settings."""
        return {
            "environment": environment(self.model),
            "sources": source_hash(),
            "demo_model": combined(folder_hashes(demo.WEIGHTS)),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "pictures": {split: [q.index for q in bench.asked] for split, bench in self.benches.items()},
        }

    def trained(
        self, method: str, parameters: dict[str, Any], count: int, seed: int
    ) -> tuple[tr.Weights, dict[str, Any]]:
        """Weights; CPU seconds of this process, and the mean loss of the first and of the last tenth of the steps."""
        made, facts = make(method, **parameters), family_of(self.model).offers()
        assert isinstance(made, tr.LearnedMethod), method
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = tr.Weights.made(made.header(facts, {"seed": seed}), made.module(facts))
        data = batches(self.model, self.processor, self.shown, self.given["batch"], seed)
        asked = tr.TrainingSettings(steps=self.given["steps"], seed=seed)
        began = time.process_time()
        found = tr.train(self.model, method, data, keep=count, weights=start, settings=asked)
        seconds, tenth = time.process_time() - began, max(1, len(found.losses) // 10)
        loss = {"first": np.mean(found.losses[:tenth]), "last": np.mean(found.losses[-tenth:])}
        return found.weights, {
            "cpu_seconds": round(seconds, 1),
            "loss": {name: round(float(x), 4) for name, x in loss.items()},
        }

    def marks(self) -> dict[str, str]:
        """Of each split, a 1 for each question that is answered right and a 0 for each other."""
        return {
            split: "".join("01"[demo.right(r, q.answer)] for r, q in zip(bench.replies(), bench.asked, strict=True))
            for split, bench in self.benches.items()
        }

    def cell(self, name: str, count: int, seed: int | None) -> dict[str, Any]:
        method, more, said = name.partition(",")[0], {}, {}
        if name in ARMS:
            assert seed is not None, name
            more["weights"], said["training"] = self.trained(method, ARMS[name], count, seed)
        elif seed is not None:
            more["seed"] = seed
        with tr.wrapped(self.model, method, keep=count, **more):
            said |= self.marks()
            kept = {own for image in tr.report(self.model).tokens_kept for own in image}
        assert kept == {count}, (name, count, kept)  # or counts would not be equal
        return said


def todo(given: dict[str, Any]) -> dict[str, tuple[str, int, int | None]]:
    """Method, count and seed by key: what needs no training first."""
    counts, seeds = given["counts"], given["seeds"]
    plain = [(name, count, None) for name in given["compared"] for count in counts]
    drawn = [(name, count, seed) for name in (given["control"], *given["arms"]) for count in counts for seed in seeds]
    return {"|".join(str(part) for part in one if part is not None): one for one in (*plain, *drawn)}


def flat(content: Any, name: str = "") -> dict[str, Any]:
    """What stands where in nested ``content``."""
    if not isinstance(content, dict) or not content:
        return {name: content}
    return {k: v for part, own in content.items() for k, v in flat(own, f"{name}.{part}".lstrip(".")).items()}


def common(content: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What cells of ``content`` depend on: not which there are, by count, seed or method, nor what only it has of arms."""
    settings = {k: v for k, v in content["settings"].items() if k not in ("counts", "seeds", "compared")}
    for part in ("arms", "examples"):
        theirs = other["settings"].get(part, {})
        settings[part] = {name: own for name, own in settings.get(part, {}).items() if name in theirs}
    return flat({k: v for k, v in content.items() if k != "cells"} | {"settings": settings})


def opened(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What ``path`` holds, where it is of a run under the conditions ``wanted``, or an empty beginning where nothing is there.

    Counts, seeds and arms may come to those that are there. Errors: ``SystemExit`` that names what is another.
    """
    if not path.exists():
        return wanted | {"cells": {}}
    data, wanted = json.loads(path.read_text()), json.loads(as_json(wanted))
    old, new = common(data, wanted), common(wanted, data)
    names = [name for name in old | new if old.get(name) != new.get(name)]
    other = [f"{name}={reprlib.repr(old.get(name))}, now {reprlib.repr(new.get(name))}" for name in names]
    if other:
        raise SystemExit(
            f"{path} holds results of another run: {'; '.join(other)}. Move it away to measure anew, or write the page from it: "
            "python benchmarks/learned.py --page"
        )
    return data | wanted


def run(measured: Measured, data: dict[str, Any], save: Callable[[dict[str, Any]], None]) -> None:
    """Measure the cells that ``data`` does not hold, and ``save`` it after each."""
    jobs = todo(measured.given)
    missing = [key for key in ("unreduced", *jobs) if key not in data["cells"]]
    with Progress() as bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="keep=1 is one token per image")  # it is what is meant
        task = bar.add_task("", total=len(jobs) + 1, completed=len(jobs) + 1 - len(missing))
        for key in missing:
            bar.update(task, description=key.replace("|", ", "))
            data["cells"][key] = measured.cell(*jobs[key]) if key in jobs else measured.marks()
            save(data)
            bar.advance(task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="try the way with a few steps and questions: prints the page, writes nothing",
    )
    parser.add_argument("--page", action="store_true", help="only write page and picture from the data that is there")
    options = parser.parse_args()
    if options.quick and options.page:
        parser.error("--quick writes no page; give one of both")
    if options.page and not DATA.exists():
        parser.error(f"{DATA} is not there; measure first: python benchmarks/learned.py")
    if options.page:
        write(json.loads(DATA.read_text()))
        return
    torch.set_num_threads(1)  # the same sums wherever it runs
    given = settings(options.quick)
    measured = Measured(given)
    wanted = {"settings": given} | measured.conditions()
    if options.quick:
        data = wanted | {"cells": {}}
        run(measured, data, lambda data: None)
        print(page(data))
        return
    data = opened(DATA, wanted)
    run(measured, data, lambda data: write_json(DATA, data))
    write(data)


if __name__ == "__main__":
    main()
