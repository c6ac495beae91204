"""Where in the original image each visual token looks: the processor's resizing, cropping and tiling undone.

The rules are those of the image processors of transformers; one file per idea: ``crop``, ``anyres``, ``tiles``. Processors
that squeeze the whole image onto one grid (SigLIP, PaliGemma, Gemma 3, dynamic resolution as in Qwen-VL) need no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tokenreduce.draw.anyres import anyres
from tokenreduce.draw.crop import cropped
from tokenreduce.draw.tiles import cut, pan_and_scan, split, with_thumbnail
from tokenreduce.draw.transforms import settings_of
from tokenreduce.tokens import Layout

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels of the original image
Settings = Callable[[str], Any]


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
    setting = _settings(processor, layout)
    if setting("image_grid_pinpoints"):
        boxes = anyres(image_size, setting, layout)
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


def tiles_of(image_size: tuple[int, int], processor: Any) -> int:
    """How many images of the trace one image becomes: more than 1 for Idefics3, SmolVLM and pan and scan."""
    return len(_parts(image_size, _settings(processor, None)))


def seen_box(image_size: tuple[int, int], processor: Any) -> Box:
    """What the vision tower is given of an image, all its views together; arguments as ``cell_boxes``."""
    boxes = np.array(_parts(image_size, _settings(processor, None)))
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


def _settings(processor: Any, layout: Layout | None) -> Settings:
    video = layout is not None and layout.frames > 1 and getattr(processor, "video_processor", None)
    source = video or getattr(processor, "image_processor", processor)
    if hasattr(source, "transforms"):
        source = settings_of(source.transforms)

    def setting(name: str) -> Any:
        if name == "tile_token":  # of a processor that writes a marker before every tile
            return getattr(processor, name, None)
        return source.get(name) if isinstance(source, dict) else getattr(source, name, None)

    if source is not None and all(setting(name) is None for name in ("size", "do_resize", "do_center_crop")):
        raise ValueError(
            f"processor={type(processor).__name__}, which has no settings of an image processor (size, do_resize, "
            "do_center_crop); pass the processor that made the model's inputs, or None to lay the grid over the whole image"
        )
    return setting


def _cells(box: Box, view: Layout) -> np.ndarray:
    """(frames * height * width, 4) boxes of the complete grid that covers ``box``."""
    left, top, right, bottom = box
    x = left + (right - left) * np.arange(view.width + 1) / view.width
    y = top + (bottom - top) * np.arange(view.height + 1) / view.height
    row, column = np.divmod(np.arange(view.height * view.width), view.width)
    return np.tile(np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1), (view.frames, 1))
