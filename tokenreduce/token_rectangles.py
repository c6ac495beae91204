"""Tokens inside a tower as rectangles of a grid."""

from __future__ import annotations

import math
from typing import NamedTuple

from tokenreduce.tokens import VisualTokens


class Rectangle(NamedTuple):
    """``height`` x ``width`` tokens; ``order``, which token is at each place, in raster order."""

    height: int
    width: int
    order: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def rectangles(tokens: VisualTokens) -> list[Rectangle]:
    """Of each image, the rectangle that its tokens behind the prefix are; reads their places off the device only where an image
    fills a part of its grid.

    Errors: ``ValueError`` where they are none.
    """
    prefix, width = tokens.prefix, tokens.layout.width
    if tokens.num_tokens - prefix == tokens.layout.num_tokens:
        return [_rectangle(tokens.layout.patches, width)] * len(tokens.features)
    cells = tokens.source - prefix if tokens.cell is None else tokens.cell
    return [_rectangle(tuple(own), width) for own in cells[:, prefix:].tolist()]


def _rectangle(cells: tuple[int, ...], width: int) -> Rectangle:
    down, across = {cell // width for cell in cells}, {cell % width for cell in cells}
    size = max(down) - min(down) + 1, max(across) - min(across) + 1
    if math.prod(size) != len(cells):
        raise ValueError(
            f"{len(cells)} tokens are no rectangle of a grid, as others have merged or left before; allowed in front of a method "
            "that reads them as one: no other method inside the vision tower"
        )
    return Rectangle(*size, tuple(sorted(range(len(cells)), key=cells.__getitem__)))
