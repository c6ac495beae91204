"""Images cut into tiles that leave nothing out: InternVL's, and those that reach the model as images of their own."""

from __future__ import annotations

import math

from tokenreduce.adapters.upstream.processors import LONGEST_EDGE, Settings, entry
from tokenreduce.draw.geometry.crops import Box
from tokenreduce.layout import Layout


def grid(size: tuple[int, int], rows: int, columns: int) -> list[Box]:
    """An image of ``size`` (width, height) in equal tiles, row by row."""
    across, down = size[0] / columns, size[1] / rows
    return [
        (column * across, row * down, (column + 1) * across, (row + 1) * down)
        for row in range(rows)
        for column in range(columns)
    ]


def with_thumbnail(size: tuple[int, int], layout: Layout) -> list[Box]:
    """InternVL: the image squeezed onto a canvas of tiles, row by row, then the whole of it once more.

    Of the canvases with as many tiles as ``layout`` shows, the processor takes the one closest to the image in
    proportions.
    """
    count = max(1, len(layout.views) - 1)
    shapes = [(count // columns, columns) for columns in range(1, count + 1) if count % columns == 0]
    rows, columns = min(shapes, key=lambda shape: abs(size[0] / size[1] - shape[1] / shape[0]))
    return [*grid(size, rows, columns), *grid(size, 1, 1)][: len(layout.views)]


def cut(size: tuple[int, int], setting: Settings) -> list[Box]:
    """Aya Vision: the same, every tile an image of its own, so that their number follows from the image alone.

    Between canvases of equal proportions the larger one is taken, as long as the image fills half of it.
    """
    tile, least, most = setting("size"), setting("min_patches"), setting("max_patches")
    area = entry(tile, "height") * entry(tile, "width")
    sides = range(1, most + 1)
    shapes = [(c, r) for c in sides for r in sides if least <= c * r <= most]
    best, closest = (1, 1), math.inf
    for columns, rows in sorted(shapes, key=math.prod):
        off = abs(size[0] / size[1] - columns / rows)
        if off < closest or (off == closest and math.prod(size) > 0.5 * area * columns * rows):
            best, closest = (columns, rows), off
    return grid(size, 1, 1) if best == (1, 1) else [*grid(size, best[1], best[0]), *grid(size, 1, 1)]


def split(size: tuple[int, int], setting: Settings) -> list[Box]:
    """Idefics3, SmolVLM: the longest edge resized, both edges stretched to multiples of a tile, then the whole image."""
    edge = entry(setting("max_image_size"), "longest_edge")
    width, height = size
    longest = entry(setting("size"), "longest_edge") if setting("do_resize") else None
    if longest:
        longest = min(longest, LONGEST_EDGE)
        short = int(longest / (max(size) / min(size)))
        short += short % 2
        width, height = (longest, short) if width >= height else (short, longest)
    if width >= height:
        columns = math.ceil(width / edge)
        rows = math.ceil(int(columns * edge / (width / height)) / edge)
    else:
        rows = math.ceil(height / edge)
        columns = math.ceil(int(rows * edge * (width / height)) / edge)
    return grid(size, 1, 1) if rows == columns == 1 else [*grid(size, rows, columns), *grid(size, 1, 1)]


def pan_and_scan(size: tuple[int, int], setting: Settings) -> list[Box]:
    """Gemma 3: the whole image, then crops along the longer side of an elongated one."""
    least = setting("pan_and_scan_min_crop_size")
    long, short = max(size), min(size)
    if long / short < setting("pan_and_scan_min_ratio_to_activate"):
        return grid(size, 1, 1)
    crops = min(setting("pan_and_scan_max_num_crops"), max(2, min(long // least, math.floor(long / short + 0.5))))
    step = math.ceil(long / crops)
    if min(step, short) < least:
        return grid(size, 1, 1)
    cuts = [(float(step * i), float(min(long, step * (i + 1)))) for i in range(crops)]
    wide = size[0] >= size[1]
    boxes = [(low, 0.0, high, float(short)) if wide else (0.0, low, float(short), high) for low, high in cuts]
    return [*grid(size, 1, 1), *boxes]
