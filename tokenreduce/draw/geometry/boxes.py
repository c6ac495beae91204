"""The box of every visual token and of every view, in pixels of the original image."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenreduce.adapters.upstream.processors import Settings
from tokenreduce.draw.geometry.any_resolution import any_resolution
from tokenreduce.draw.geometry.crops import Box, cropped
from tokenreduce.draw.geometry.settings import settings_of
from tokenreduce.draw.geometry.tiles import cut, pan_and_scan, split, with_thumbnail
from tokenreduce.layout import Layout


def cell_boxes(image_size: tuple[int, int], processor: Any, layout: Layout, tile: int = 0) -> np.ndarray:
    """Where each visual token looks: (N, 4) float64 left, top, right, bottom in pixels of the original image.

    Boxes may reach beyond the image where the processor padded it. Every frame of a video has the same boxes.

    Args:
        image_size: (width, height) of the original image, pixels.
        processor: the model's processor, or its image or video processor, or torchvision transforms as of timm and open_clip
            (``Compose``), or a dictionary of the same settings. A processor that has both is asked for its video processor
            where ``layout`` has several frames. None: the grid covers the whole image.
        layout: of the N tokens.
        tile: which of the images that the processor makes of this one (``tiles_of``) the layout belongs to.

    Errors: ``ValueError`` for tiles that the processor does not make, or settings that cannot be undone.
    """
    boxes = view_boxes(image_size, processor, layout, tile)
    cells = [_cells(box, view) for box, view in zip(boxes, layout.views or (layout,), strict=True)]
    return np.concatenate(cells)[np.asarray(layout.patches, dtype=int)]


def view_boxes(image_size: tuple[int, int], processor: Any, layout: Layout, tile: int = 0) -> list[Box]:
    """What each view of ``layout`` shows, one box for a layout without views; arguments as ``cell_boxes``."""
    setting = settings_of(processor, layout)
    if setting("image_grid_pinpoints"):
        boxes = any_resolution(image_size, setting, layout)
    elif layout.views and setting("crop_to_patches") is not None:
        boxes = with_thumbnail(image_size, layout)
    else:
        parts = _parts(image_size, setting)
        if not 0 <= tile < len(parts):
            raise ValueError(f"tile={tile}; allowed: 0 to {len(parts) - 1}, the images this processor makes of one")
        boxes = parts[tile : tile + 1]
    if len(boxes) != len(layout.views or (layout,)):
        raise ValueError(
            f"processor={type(processor).__name__}: it shows an image of {image_size[0]} x {image_size[1]} pixels in "
            f"{len(boxes)} view(s), but the trace has {len(layout.views)}; pass the processor and the image that the model "
            "was called with"
        )
    return boxes


def check_shape(image_size: tuple[int, int], layout: Layout) -> None:
    """Raise where ``layout`` cannot be the grid of a whole image of ``image_size`` (width, height), squeezed or cropped.

    A tower that takes images of any shape rounds both sides to whole cells: to the nearest, down or up.
    """
    if layout.views:
        return
    (width, height), (across, down) = image_size, (layout.width, layout.height)
    for least, most in ((-0.5, 0.5), (0.0, 1.0), (-1.0, 0.0)):
        # the edges of a cell, in pixels, with which that many cells go into either side
        low = max(width / (across + most), height / (down + most))
        high = min(width / max(across + least, 1e-9), height / max(down + least, 1e-9))
        if low <= high:
            return
    raise ValueError(
        f"image={width} x {height} pixels, but the model saw {across} x {down} tokens, which do not cover it in its own "
        "proportions: it was cropped or squeezed. Pass the processor that made the model's inputs, tr.draw(trace, image, "
        "processor), or the image as the model saw it"
    )


def tiles_of(image_size: tuple[int, int], processor: Any) -> int:
    """How many images of the trace one image becomes: more than 1 for Idefics3, SmolVLM and pan and scan."""
    return len(_parts(image_size, settings_of(processor)))


def seen_box(image_size: tuple[int, int], processor: Any) -> Box:
    """What the vision tower is given of an image, all its views together; arguments as ``cell_boxes``."""
    boxes = np.array(_parts(image_size, settings_of(processor)))
    return (*map(float, boxes[:, :2].min(axis=0)), *map(float, boxes[:, 2:].max(axis=0)))  # type: ignore[return-value]


def _parts(image_size: tuple[int, int], setting: Settings) -> list[Box]:
    if setting("do_image_splitting"):
        return split(image_size, setting)
    if setting("tile_token"):
        return cut(image_size, setting)
    if setting("do_pan_and_scan"):
        return pan_and_scan(image_size, setting)
    if setting("image_grid_pinpoints"):
        return [(0.0, 0.0, float(image_size[0]), float(image_size[1]))]
    return [cropped(image_size, setting)]


def _cells(box: Box, view: Layout) -> np.ndarray:
    """(frames * height * width, 4) boxes of the complete grid that covers ``box``."""
    left, top, right, bottom = box
    x = left + (right - left) * np.arange(view.width + 1) / view.width
    y = top + (bottom - top) * np.arange(view.height + 1) / view.height
    row, column = np.divmod(np.arange(view.height * view.width), view.width)
    return np.tile(np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1), (view.frames, 1))
