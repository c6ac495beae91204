"""How pages look: one stylesheet, light, dark and printed, and keys to pictures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

from tokenreduce.draw.legend import Color, Swatch

#: label, fill and outline in CSS
Entry = tuple[str, str, str]


def stylesheet() -> str:
    """CSS for a page: colours that follow the reader's scheme, its body, keys, and what paper does without."""
    return files("tokenreduce.draw").joinpath("page.css").read_text(encoding="utf-8")


def key_entries(swatches: Sequence[Swatch]) -> list[Entry]:
    """Swatches with their colours in CSS."""
    return [(label, css_color(fill), css_color(outline)) for label, fill, outline in swatches]


def html_key(entries: Sequence[Entry]) -> str:
    """A key to pictures as HTML, for pages with ``stylesheet``."""
    return "<div class=key>{}</div>".format(
        "".join(
            f"<span><i style='background: {html.escape(fill)}; box-shadow: inset 0 0 0 3px {html.escape(edge)}'></i>"
            f"{html.escape(label)}</span>"
            for label, fill, edge in entries
        )
    )


def css_color(color: Color | Sequence[int] | None) -> str:
    """``rgb(...)``; hatched for None."""
    return (
        "repeating-linear-gradient(135deg, #e1e1e1 0 4px, #787878 4px 6px)" if color is None else f"rgb{tuple(color)}"
    )
