"""What the presets and switches of PiToMe plan; in wrapped models; errors."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from pitome_tokens import shown
from standins import FACTS, alone, random

from tokenreduce.energy_merging import Merge
from tokenreduce.methods.pitome import PiToMe
from tokenreduce.registry import make


def plan_of(**parameters: Any) -> list[tuple[Any, ...]]:
    """Per block of a tower of depth 4 in which every block merges: what the step says."""
    steps = PiToMe(r=2, **parameters).plan(alone(64, 4))
    return [
        (s.amount.matching, round(s.amount.margin, 6), s.amount.weighted, s.when, bool(s.needs), s.proportional)
        for s in steps
    ]


@pytest.mark.parametrize(
    ("preset", "matchings", "margins", "weighted", "when", "keys", "proportional"),
    [
        ("llava", ["bsm", "bsm", "bsm", "energy"], [0.9, 0.675, 0.45, 0.225], False, "after", False, False),
        ("keys", ["energy"] * 4, [0.9, 0.675, 0.45, 0.225], True, "middle", True, True),
        ("keys_bsm", ["energy_bsm"] * 4, [0.9, 0.675, 0.45, 0.225], True, "middle", True, True),
        ("deit", ["energy_bsm"] * 2 + ["energy"] * 2, [0.75, 0.5625, 0.375, 0.1875], True, "middle", True, False),
        ("mae", ["energy"] * 2 + ["energy_bsm"] * 2, [0.75, 0.5625, 0.375, 0.1875], True, "middle", True, False),
        ("aug", ["energy_bsm"] * 2 + ["energy"] * 2, [0.9, 0.675, 0.45, 0.225], True, "middle", True, False),
        ("blip", ["energy"] * 4, [0.9, 0.675, 0.45, 0.225], True, "middle", False, False),
        ("blip2", ["energy"] * 4, [0.75, 0.65, 0.55, 0.45], True, "middle", True, True),
        ("clip", ["energy"] * 4, [0.95, 0.7125, 0.475, 0.2375], True, "middle", False, False),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_presets(preset, matchings, margins, weighted, when, keys, proportional) -> None:
    assert plan_of(preset=preset) == [(m, x, weighted, when, keys, proportional) for m, x in zip(matchings, margins)]


def test_the_preset_follows_the_model() -> None:
    assert plan_of() == plan_of(preset="keys_bsm")
    assert [s.amount.matching for s in PiToMe(r=1).plan(FACTS)] == ["bsm"] * 13 + ["energy"] * 10
    assert {s.when for s in PiToMe(r=1).plan(FACTS)} == {"after"}


def test_every_switch_works_on_its_own() -> None:
    base = plan_of(preset="llava")
    assert [row[4] for row in plan_of(preset="llava", metric="keys")] == [True] * 4
    assert [row[3] for row in plan_of(preset="llava", when="middle")] == ["middle"] * 4
    assert [row[2] for row in plan_of(preset="llava", size_weighted=True)] == [True] * 4
    assert [row[5] for row in plan_of(preset="llava", prop_attn=True)] == [True] * 4
    assert [row[0] for row in plan_of(preset="llava", matching="energy_bsm")] == ["energy_bsm"] * 4
    assert [row[0] for row in plan_of(preset="llava", matching=["bsm", "energy"])] == ["bsm", *["energy"] * 3]
    assert [row[1] for row in plan_of(preset="llava", m0=0.4)] == [0.4, 0.3, 0.2, 0.1]
    assert [row[1] for row in plan_of(preset="llava", m0=0.4, fall=0.0)] == [0.4] * 4
    assert [row[1] for row in plan_of(preset="blip2", fall=0.2)] == [0.75, 0.7, 0.65, 0.6]
    assert plan_of(preset="llava", metric="features", when="after", size_weighted=False, prop_attn=False) == base


def test_alpha_changes_the_energy() -> None:
    x = random(1, 40, 6)
    steep, flat = (PiToMe(r=10, alpha=a).reduce(shown(x, Merge(10, margin=0.3), 0)).assign for a in (1.0, 0.0))
    assert not torch.equal(steep, flat)


def test_what_a_step_carries_survives_copies() -> None:
    merge = Merge(7, "bsm", 0.25, False)
    for same in (copy.deepcopy(merge), pickle.loads(pickle.dumps(merge))):
        assert (same, same.matching, same.margin, same.weighted) == (7, "bsm", 0.25, False)


@pytest.mark.parametrize(
    ("parameters", "policy"),
    [({}, "keep"), ({"positions": "renumber"}, "renumber"), ({"output_order": "reference"}, "renumber")],
    ids=str,
)
def test_position_ids_follow_the_output_order(parameters, policy) -> None:
    x = random(1, 9, 4)
    for prune in (False, True):
        assert PiToMe(r=2, prune=prune, **parameters).reduce(shown(x, Merge(2), 1)).positions == policy


@pytest.mark.parametrize(
    ("parameters", "kind", "words"),
    [
        ({"keep": 0}, ValueError, "keep=0 tokens per image; allowed: an int >= 1"),
        ({"keep": 0.5, "rho": 0.9}, ValueError, "keep=0.5 and rho=0.9 both set the number of tokens; give one"),
        ({"rho": 0.9, "r": 3}, ValueError, "rho=0.9 and r=3 both set the number of tokens; give one"),
        ({"rho": 0.0}, ValueError, r"rho=0.0; allowed: the share kept per block, in \(0, 1\]"),
        ({"rho": 1.1}, ValueError, r"rho=1.1; allowed"),
        ({"rho": [0.9, 2]}, ValueError, r"rho=\[0.9, 2\]; allowed"),
        ({"rho": "0.9"}, ValueError, r"rho='0.9'; allowed"),
        ({"rho": True}, ValueError, r"rho=True; allowed"),
        ({"r": -1}, TypeError, "r=-1; allowed: an int >= 0"),
        ({"r": (8, -1.0)}, TypeError, r"r=\(8, -1.0\); allowed: an int >= 0 .* or a list"),
        ({"preset": "qwen"}, ValueError, "preset='qwen'; allowed: None, 'llava', 'keys'"),
        ({"metric": "values"}, ValueError, "metric='values'; allowed: None, 'keys', 'features'"),
        ({"when": "before"}, ValueError, "when='before'; allowed: None, 'middle', 'after'"),
        ({"matching": "tome"}, ValueError, "matching='tome'; allowed: None, 'energy', 'energy_bsm', 'bsm'"),
        ({"matching": ["bsm", "tome"]}, ValueError, "matching='tome'; allowed"),
        ({"matching": []}, ValueError, r"matching=\[\]; allowed"),
        ({"m0": 1.5}, ValueError, r"m0=1.5 is outside \[-1, 1\]"),
        ({"fall": -0.1}, ValueError, r"fall=-0.1 is outside \[0, 2\]"),
        ({"alpha": -1.0}, ValueError, r"alpha=-1.0 is outside \[0, inf\]"),
        ({"output_order": "random"}, ValueError, "output_order='random'; allowed: 'raster', 'reference'"),
        ({"margin": 0.5}, TypeError, "pitome has no parameter 'margin'"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(parameters, kind, words) -> None:
    with pytest.raises(kind, match=words):
        make("pitome", **parameters)


def test_what_a_tower_cannot_do_is_refused_when_planning() -> None:
    for parameters in ({"rho": [0.9] * 25}, {"matching": ["bsm"] * 25}):
        with pytest.raises(ValueError, match=r"has 25 entries for the 24 blocks of this tower; give at most 24"):
            PiToMe(**parameters).plan(FACTS)


def test_a_share_per_block_needs_no_number_of_patches() -> None:
    unknown = dataclasses.replace(FACTS, tower_grid=None)
    assert [float(step.amount) for step in PiToMe(rho=0.9).plan(unknown)] == [0.9] * 23
