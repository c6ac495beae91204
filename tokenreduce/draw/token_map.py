"""A map of the tokens of an image without its pixels: views and frames side by side on soft colours."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from tokenreduce.draw.overlay import draw
from tokenreduce.layout import Layout
from tokenreduce.provenance import ImageTrace


def token_map(image: ImageTrace, **options: Any) -> Image.Image:
    """The tokens of ``image`` without its pixels; options as ``draw``."""
    return draw(*on_one_grid(image), None, **options)


def on_one_grid(image: ImageTrace) -> tuple[ImageTrace, Image.Image]:
    """``image`` with all its views or frames on one grid, and soft colours in the place of its pixels."""
    flat = replace(image, layout=_one_grid(image.layout))
    high, wide = flat.layout.height, flat.layout.width
    y, x = np.mgrid[0 : 8 * high, 0 : 8 * wide]
    tint = np.stack([150 + 60 * x / (8 * wide), 150 + 40 * y / (8 * high), 210 - 60 * x / (8 * wide)], axis=-1)
    return flat, Image.fromarray(tint.astype(np.uint8))


def _one_grid(layout: Layout) -> Layout:
    """One grid that holds all views or frames, a cell apart."""
    views = layout.views or (Layout(layout.height, layout.width),) * layout.frames
    if len(views) == 1:
        return replace(views[0], cells=layout.patches)
    columns = math.ceil(math.sqrt(len(views)))
    high, wide = max(v.height for v in views) + 1, max(v.width for v in views) + 1
    width, places = columns * wide - 1, []
    for number, view in enumerate(views):
        row, column = divmod(number, columns)
        y, x = np.divmod(np.arange(view.height * view.width), view.width)
        places.append((row * high + y) * width + column * wide + x)
    cells = np.concatenate(places)[np.asarray(layout.patches, dtype=int)]
    return Layout(math.ceil(len(views) / columns) * high - 1, width, cells=tuple(cells.tolist()))
