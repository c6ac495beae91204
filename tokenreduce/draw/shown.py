"""A trace as one picture: over the pictures it is given, or as a map of its tokens where it has none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tokenreduce.draw.fate import pieces
from tokenreduce.draw.film import film, strip
from tokenreduce.draw.geometry import tiles_of
from tokenreduce.draw.overlay import draw
from tokenreduce.draw.sheet import sheet
from tokenreduce.tokens import Layout

if TYPE_CHECKING:
    from tokenreduce.provenance import ImageTrace, Trace

Pictures = Sequence[Any]  # one per picture of the prompt: an image, or the frames of a video


def show(trace: Trace, pictures: Pictures, processor: Any = None, *, columns: int = 3, **options: Any) -> Image.Image:
    """All pictures of a prompt, each drawn; options as ``draw``.

    Args:
        trace: of the prompt.
        pictures: the original images in the order of the call, a list of frames for a video. Empty: a map of the tokens.
        processor: see ``cell_boxes``.
        columns: pictures side by side.
    """
    if not trace.images:
        raise ValueError("this prompt held no image; there is nothing to draw")
    if len(pictures) > len(trace.images) == 1 and trace.images[0].layout.frames > 1:  # the frames themselves
        pictures = [pictures]
    drawn, index = [], 0
    for picture in pictures:
        drawn.append(drawn_over(trace, picture, processor, index=index, **options))
        index += len(parts_of(trace, picture, processor, index))
    if not pictures:
        drawn = [chart(image, **options) for image in trace.images]
    if len(drawn) == 1:
        return drawn[0]
    return sheet(drawn, [f"picture {i}" for i in range(len(drawn))], min(columns, len(drawn)), tile=drawn[0].width)


def drawn_over(trace: Trace | ImageTrace, picture: Any, processor: Any = None, **options: Any) -> Image.Image:
    """``draw`` for an image, a ``strip`` of four frames in a row for a list of frames; options as ``draw``."""
    if isinstance(picture, Image.Image):
        return draw(trace, picture, processor, **options)
    caption, side = options.pop("caption", True), options.pop("side", 640)
    if caption is False:
        pictures, lines, _, _ = film(trace, picture, processor, side=side // 4, **options)
        return sheet(pictures, lines, min(4, len(pictures)), tile=pictures[0].width)
    return strip(trace, picture, processor, columns=4, side=side // 4, **options)


def parts_of(trace: Trace, picture: Any, processor: Any, index: int) -> list[ImageTrace]:
    """The images of ``trace`` that ``picture`` became: one, or one per tile or frame; ``picture`` None: one."""
    if isinstance(picture, Image.Image):
        return pieces(trace, index, tiles_of(picture.size, processor))
    filmed = picture is None or pieces(trace, index)[0].layout.frames > 1
    return pieces(trace, index, 1 if filmed else len(picture))


def chart(image: ImageTrace, **options: Any) -> Image.Image:
    """The tokens of ``image`` without its pixels: views and frames side by side on a sheet of soft colours."""
    flat = replace(image, layout=_mosaic(image.layout))
    high, wide = flat.layout.height, flat.layout.width
    y, x = np.mgrid[0 : 8 * high, 0 : 8 * wide]
    tint = np.stack([150 + 60 * x / (8 * wide), 150 + 40 * y / (8 * high), 210 - 60 * x / (8 * wide)], axis=-1)
    return draw(flat, Image.fromarray(tint.astype(np.uint8)), None, **options)


def _mosaic(layout: Layout) -> Layout:
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


def pixels_of(inputs: Mapping[str, Any], index: int) -> Image.Image | None:
    """Image ``index`` as the vision tower was given it, in approximate colours; None where pixels come in other shapes."""
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or pixels.shape[1] != 3 or index >= len(pixels):
        return None
    image = pixels[index].float().cpu()
    low, high = image.min(), image.max()
    return Image.fromarray(((image - low) / (high - low).clamp_min(1e-6) * 255).byte().permute(1, 2, 0).numpy())
