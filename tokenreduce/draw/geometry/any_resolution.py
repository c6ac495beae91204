"""LLaVA-NeXT and LLaVA-OneVision: a base view, then tiles of the image fitted into the best of several canvases."""

from __future__ import annotations

from tokenreduce.adapters.upstream.processors import Settings, best_canvas, entry, fitted_size
from tokenreduce.draw.geometry.crops import Box, squared
from tokenreduce.layout import Layout


def any_resolution(size: tuple[int, int], setting: Settings, layout: Layout) -> list[Box]:
    """The box of each view: the whole image squeezed into a square, then what each tile of the canvas shows.

    Tiles reach beyond the image where the canvas was filled up with black. Where OneVision has more tokens than
    ``anyres_max`` allows, the tiles are pooled into a single grid, whose box comes second. An image among several in a
    sample has no views (OneVision): the image made square by a border. A strip so long that unpadding left nothing of its
    tiles has a single one.
    """
    width, height = size
    whole = (0.0, 0.0, float(width), float(height))
    if not layout.views:
        return [squared(size) if layout.medium == "image" else whole]
    if len(layout.views) == 1:
        return [whole]
    canvas = best_canvas((height, width), setting("image_grid_pinpoints"))
    fitted = fitted_size((height, width), canvas)
    top, left = (canvas[0] - fitted[0]) // 2, (canvas[1] - fitted[1]) // 2
    sizes = setting("crop_size"), setting("size")
    tile = entry(sizes[0], "height") or entry(sizes[1], "height") or entry(sizes[1], "shortest_edge")

    def original(x: float, y: float, right: float, bottom: float) -> Box:
        """A box of the canvas, in pixels of the image."""
        across, down = width / fitted[1], height / fitted[0]
        return (x - left) * across, (y - top) * down, (right - left) * across, (bottom - top) * down

    places = [(x, y) for y in range(0, canvas[0], tile) for x in range(0, canvas[1], tile)]
    if len(layout.views) == 2 < 1 + len(places):
        grid = layout.views[0].height
        cut_y, cut_x = _unpadded(size, canvas[0] // tile * grid, canvas[1] // tile * grid)
        edge = tile / grid
        return [whole, original(cut_x * edge, cut_y * edge, canvas[1] - cut_x * edge, canvas[0] - cut_y * edge)]
    return [whole, *(original(x, y, x + tile, y + tile) for x, y in places)]


def _unpadded(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a grid over the canvas that the model cuts off at either end (``unpad_image``)."""
    width, height = size
    if width / height > columns / rows:
        return (rows - int(round(height * columns / width, 7))) // 2, 0
    return 0, (columns - int(round(width * rows / height, 7))) // 2
