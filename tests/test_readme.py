"""The first page says what the data says."""

from __future__ import annotations

import re
from pathlib import Path

from scripts import script

from tokenreduce.registry import registry

ROOT = Path(__file__).resolve().parent.parent


def test_tables_are_what_the_committed_results_give():
    text = (ROOT / "README.md").read_text()
    assert script("benchmarks/update_readme.py").filled(text) == text, "run python benchmarks/update_readme.py"


def test_local_links_and_pictures_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} points at {target}"


def test_every_method_has_a_page_that_names_its_paper():
    for name, cls in registry().items():
        page = (ROOT / "docs/methods" / f"{name if cls.paper else 'baselines'}.md").read_text()
        assert (cls.paper.removeprefix("arXiv ") if cls.paper else f"`{name}`") in page, name
        assert not cls.paper or "](../images/" in page, f"{name}: no picture, see docs/make_gallery.py"


def test_the_first_page_is_short_until_something_is_unfolded():
    text = (ROOT / "README.md").read_text()
    assert text.count("<details>") == text.count("</details>") > 0
    unfolded = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert len(unfolded.splitlines()) <= 130
    assert "| --- |" not in unfolded
