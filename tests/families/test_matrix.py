"""The matrix of methods and families: every pair keeps the contracts or refuses, and docs/families.md says which."""

from __future__ import annotations

import json
from pathlib import Path

import pairs
import pytest
import reduced

from tokenreduce.registry import registry

DOCS = Path(__file__).resolve().parents[2] / "docs"
RAN = json.loads((DOCS / "families.json").read_text())["families"]


@pytest.mark.parametrize("key", reduced.EVERY)
def test_every_pair_keeps_the_contracts_or_refuses_as_it_did_last(key):
    ran = pairs.record(key)
    assert ran == RAN[key], f"run python docs/make_families.py --only {key}"


#: what a method asks for and a family has in a way of its own
OWN_WAYS = [
    ("exaone4_5", "prumerge"),  # heads of the tower share keys
    ("exaone4_5", "pyramiddrop"),  # norms stand behind attention and MLP
    ("mistral3", "visionzip"),  # packed rows come with an axis of one in front
    ("minicpmv4_6", "prumerge"),  # the same, joined half-way
    ("muse_glimmer", "pyramiddrop"),  # a layer without a rotary table
    ("muse_glimmer", "holitom"),  # merging leaves fewer than the budget
    ("video_llama_3", "holitom"),  # the processor leaves tokens of a video out
    ("gemma4", "dart"),  # queries and keys are rotated one by one
    ("kimi_k25", "dart"),  # keys are made anew of narrower rows
    ("gemma3n", "dart"),  # several states of a token
]


@pytest.mark.every_family
@pytest.mark.parametrize(("key", "name"), [pair for pair in OWN_WAYS if pair[0] in reduced.EVERY])
def test_what_a_family_does_in_a_way_of_its_own(key, name):
    assert pairs.verdicts(key, name) == RAN[key]["methods"][name]


@pytest.mark.every_family
@pytest.mark.parametrize("key", reduced.EVERY)
def test_no_cell_is_empty(key):
    assert [*RAN[key]["methods"]] == [*registry()]
    assert all(RAN[key]["facts"])
    for name, found in RAN[key]["methods"].items():
        assert [*found] == pairs.kinds(key), name


def test_the_page_shows_what_ran_and_nothing_else():
    assert [*RAN] == reduced.EVERY
    assert (DOCS / "families.md").read_text() == pairs.page(RAN), "run python docs/make_families.py"
