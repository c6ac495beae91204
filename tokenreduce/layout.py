"""Where the visual tokens of an image or video came from: grids, frames, tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

Seen = Literal["frame", "video", "image"]
Medium = Literal["image", "video"]


class PixelUnit(NamedTuple):
    """Shape of the pixel values that become one token, its *unit*: a still image has several equal frames in some models."""

    patches: int
    channels: int
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Layout:
    """Where the N tokens of one picture came from: an image, a video, or an image cut into tiles.

    ``frames`` grids of ``height`` x ``width`` cells in raster order; ``cells[n]`` is the flat cell of token n, or None
    when token n simply is cell n. Tokens without a cell (row newlines, a forwarded [CLS]) never reach a method.

    An image that the vision tower saw in several ``views`` (a base view and tiles) has the layout of each view, in the
    order of the tower, and ``cells[n]`` counts tokens through all of them; ``height`` and ``width`` then only say how
    large the grid is that the tiles form together.

    ``medium`` is what the prompt says it is, by the placeholder that stands for it: a video may have a single frame. Left
    out, several frames are a video.
    """

    height: int
    width: int
    frames: int = 1
    cells: tuple[int, ...] | None = None
    views: tuple[Layout, ...] = ()
    medium: Medium = None  # type: ignore[assignment]  # filled in below when not given

    def __post_init__(self) -> None:
        if self.medium is None:
            object.__setattr__(self, "medium", "video" if self.frames > 1 else "image")

    @property
    def num_tokens(self) -> int:
        if self.cells is not None:
            return len(self.cells)
        return sum(view.num_tokens for view in self.views) or self.frames * self.height * self.width

    @property
    def is_grid(self) -> bool:
        """True when token n is cell n of a complete grid."""
        return self.cells is None and not self.views

    def split(self, by: Seen) -> tuple[tuple[Layout, tuple[int, ...]], ...]:
        """What a method is shown at a time: the layout of each part and its tokens n, ascending.

        ``video``: every view of an image, a video as a whole; ``frame``: every frame, too; ``image``: all of it at once.
        """
        return _split(self, by)

    @property
    def patches(self) -> tuple[int, ...]:
        """Cell of every token, counted through the complete grids of all views."""
        if not self.views:
            return self.cells if self.cells is not None else tuple(range(self.num_tokens))
        cells, first = [], 0
        for view in self.views:
            cells += [first + cell for cell in view.patches]
            first += view.frames * view.height * view.width
        return tuple(cells) if self.cells is None else tuple(cells[i] for i in self.cells)


@lru_cache(maxsize=256)
def _split(layout: Layout, by: Seen) -> tuple[tuple[Layout, tuple[int, ...]], ...]:
    whole = tuple(range(layout.num_tokens))
    if by == "image":
        return ((layout, whole),)
    if layout.views:
        owner = [v for v, view in enumerate(layout.views) for _ in range(view.num_tokens)]
        cells = layout.cells or whole
        return tuple((view, tuple(n for n in whole if owner[cells[n]] == v)) for v, view in enumerate(layout.views))
    if by == "video" or layout.frames == 1:
        return ((layout, whole),)
    area = layout.height * layout.width
    places = layout.cells or whole
    owned: list[list[int]] = [[] for _ in range(layout.frames)]
    for n in whole:
        owned[places[n] // area].append(n)
    frames = []
    for own in map(tuple, owned):
        cells = tuple(places[n] % area for n in own)
        frames.append((replace(layout, frames=1, cells=None if cells == tuple(range(area)) else cells), own))
    return tuple(frames)
