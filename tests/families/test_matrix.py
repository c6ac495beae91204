"""The matrix of methods and families: every pair keeps the contracts or refuses, and docs/families.md says which."""

from __future__ import annotations

from pathlib import Path

import pairs
import pytest
import reduced

from tokenreduce.registry import registry

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "families.md").read_text()


@pytest.mark.parametrize("name", registry())
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_a_pair_keeps_the_contracts_or_refuses(key, name):
    for kind in pairs.kinds(key):
        verdict = pairs.verdict(key, name, kind)
        assert verdict.why if not verdict.works or verdict.with_ else not verdict.why


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_the_page_shows_what_ran(key):
    notes = pairs.Notes([line.partition(". ")[2] for line in PAGE.partition("## Refusals")[2].splitlines() if line])
    for cells in (pairs.facts_row(key), pairs.row(key, notes)):
        assert f"| {' | '.join(cells)} |" in PAGE, "run python docs/make_families.py"


def test_the_page_shows_nothing_else():
    heads = [line.split(" | ")[0].strip("| `") for line in PAGE.splitlines() if line.startswith("| ")]
    assert [head for head in heads if head not in ("family", "---")] == [*reduced.FAMILIES] * 2
