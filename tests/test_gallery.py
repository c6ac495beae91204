"""The gallery shows what there is: its pictures exist, are small, and its methods are registered."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

import tokenreduce as tr

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "gallery.md").read_text()


def test_pictures_are_there_and_small():
    shown = [DOCS / name for name in re.findall(r"\]\((images/[^)]+)\)", TEXT)]
    assert len(shown) >= 8
    assert {path.name for path in shown} == {path.name for path in (DOCS / "images/gallery").iterdir()}
    for path in shown:
        assert path.stat().st_size < 300_000, path
        with Image.open(path) as picture:
            picture.verify()


def test_methods_are_registered():
    (named,) = re.findall(r"In this order: ([^.]+)\.", TEXT)
    names = named.split(", ")
    assert len(names) >= 10
    assert set(names) <= {row["name"] for row in tr.methods()}
