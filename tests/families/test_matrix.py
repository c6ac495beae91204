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
