"""The benchmark of what learns: a run goes on where it stopped, never with results of other settings; differences are paired."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from scripts import script

ANSWERS = {"test": "10", "hard": "01"}


@pytest.fixture(scope="module")
def learned():
    return script("benchmarks/learned.py")


class Stopped(Exception):
    pass


class Counted:
    """In place of the model: counts what it is asked for, and stops once ``left`` cells are measured."""

    def __init__(self, given, left):
        self.given, self.left, self.cells = given, left, []

    def marks(self):
        return dict(ANSWERS)

    def cell(self, *key):
        if len(self.cells) == self.left:
            raise Stopped
        self.cells.append(key)
        return dict(ANSWERS)


def test_a_run_goes_on_with_what_is_missing(learned, tmp_path):
    given, file = learned.settings(quick=True), tmp_path / "learned.json"
    wanted = {"settings": given, "sources": "a"}
    first, second = Counted(given, 4), Counted(given, 99)
    with pytest.raises(Stopped):
        learned.run(first, learned.opened(file, wanted), lambda data: learned.write_json(file, data))
    learned.run(second, learned.opened(file, wanted), lambda data: learned.write_json(file, data))
    names, counts, seeds = given["compared"], given["counts"], given["seeds"]
    assert len(set(first.cells + second.cells)) == len(first.cells + second.cells)
    assert set(first.cells + second.cells) == {
        *((name, count, None) for name in names for count in counts),
        *((name, c, s) for name in ("random", *learned.ARMS) for c in counts for s in seeds),
    }
    assert len(json.loads(file.read_text())["cells"]) == 1 + len(first.cells + second.cells)


def test_arms_and_counts_come_to_those_that_are_there(learned, tmp_path):
    less, file = {"settings": learned.settings(quick=True), "sources": "a"}, tmp_path / "learned.json"
    more = copy.deepcopy(less)
    less["settings"]["arms"] = {"learned_selector": {}}
    more["settings"]["counts"] = [16, 4, 1]
    learned.write_json(file, less | {"cells": {"unreduced": ANSWERS}})
    assert learned.opened(file, more) == more | {"cells": {"unreduced": ANSWERS}}


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("settings", "steps"), 99, r"settings.steps=2, now 99\. Move it away"),
        (("settings", "asked", "first"), 0, "settings.asked.first=1000, now 0"),
        (("settings", "arms", "learned_selector", "hidden"), 8, "settings.arms.learned_selector.hidden=None, now 8"),
        (("settings", "examples", "rewarded_selector"), "c", "settings.examples.rewarded_selector='.*', now 'c'"),
        (("sources",), "b", "sources='a', now 'b'"),
    ],
)
def test_results_of_another_run_are_refused_by_name(learned, tmp_path, place, value, told):
    wanted, file = {"settings": learned.settings(quick=True), "sources": "a"}, tmp_path / "learned.json"
    learned.write_json(file, wanted | {"cells": {"unreduced": ANSWERS}})
    assert learned.opened(file, copy.deepcopy(wanted))["cells"] == {"unreduced": ANSWERS}
    inner = other = copy.deepcopy(wanted)
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    with pytest.raises(SystemExit, match=told):
        learned.opened(file, other)


def test_differences_are_paired_by_picture_and_hold_the_spread_of_seeds():
    page = script("benchmarks/learned_page.py")
    half, none, every = np.tile([1.0, 0.0], 20), np.zeros(40), np.ones(40)  # two questions for each of twenty pictures
    own = {"a|1": half, "b|1": none}
    own |= {
        f"{name}|1|{seed}": marks
        for name, marks in (("random", none), ("same", half), ("more", every))
        for seed in (0, 1)
    }
    own |= {"shaky|1|0": every, "shaky|1|1": none}
    settings = {"control": "random", "compared": ["b", "a"], "counts": [1], "seeds": [0, 1]}
    data = {
        "settings": settings | {"arms": {"same": {}, "more": {}, "shaky": {}}},
        "cells": {key: {"test": "".join(str(int(x)) for x in marks)} for key, marks in own.items()},
        "pictures": {"test": [i // 2 for i in range(40)]},
    }
    split = page.Split(data, "test")
    assert split.best(1) == "a"
    assert split.share("same", 1, "a") == (0, 0, 0)
    assert split.share("more", 1) == pytest.approx((1, 1, 1))
    assert split.share("more", 1, "a") == pytest.approx((0.5, 0.5, 0.5))  # by picture, the same in every resample
    assert split.share("shaky", 1, "a") == pytest.approx((0, -0.5, 0.5))
    assert [split.sign(name, 1, "a") for name in ("more", "same", "shaky", "random")] == [1, 0, 0, -1]
