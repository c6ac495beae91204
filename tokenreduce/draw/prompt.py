"""A trace as one picture: over the pictures it is given, or as a map of its tokens where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from tokenreduce.draw.geometry.boxes import tiles_of
from tokenreduce.draw.image_grid import image_grid
from tokenreduce.draw.overlay import draw
from tokenreduce.draw.stages import images_of
from tokenreduce.draw.token_map import token_map
from tokenreduce.draw.video import draw_frames, strip
from tokenreduce.provenance import ImageTrace, PromptTrace

Pictures = Sequence[Any]  # one per picture of the prompt: an image, or the frames of a video


def draw_prompt(
    trace: PromptTrace, pictures: Pictures, processor: Any = None, *, columns: int = 3, **options: Any
) -> Image.Image:
    """All pictures of a prompt, each drawn; options as ``draw``.

    Args:
        trace: of the prompt.
        pictures: the original images in the order of the call, a list of frames for a video. Empty: a map of the tokens.
        processor: see ``cell_boxes``.
        columns: pictures side by side.
    """
    if not trace.images:
        raise ValueError("this prompt held no image; there is nothing to draw")
    numbered = numbered_pictures(trace, pictures, processor)
    drawn = [draw_picture(trace, picture, processor, index=index, **options) for picture, index in numbered]
    if not drawn:
        drawn = [token_map(image, **options) for image in trace.images]
    if len(drawn) == 1:
        return drawn[0]
    return image_grid(drawn, [f"picture {i}" for i in range(len(drawn))], min(columns, len(drawn)), tile=drawn[0].width)


def numbered_pictures(trace: PromptTrace, pictures: Pictures, processor: Any = None) -> list[tuple[Any, int]]:
    """Each picture of the prompt with the index of its first image in ``trace``; arguments as ``draw_prompt``."""
    if len(pictures) > len(trace.images) == 1 and trace.images[0].layout.medium == "video":  # the frames themselves
        pictures = [pictures]
    found, index = [], 0
    for picture in pictures:
        found.append((picture, index))
        index += len(images_of_picture(trace, picture, processor, index))
    return found


def draw_picture(trace: PromptTrace | ImageTrace, picture: Any, processor: Any = None, **options: Any) -> Image.Image:
    """``draw`` for an image, a ``strip`` of four frames in a row for a list of frames; options as ``draw``."""
    if isinstance(picture, Image.Image):
        return draw(trace, picture, processor, **options)
    caption, side = options.pop("caption", True), options.pop("side", 640)
    if caption is False:
        pictures, lines, _, _ = draw_frames(trace, picture, processor, side=side // 4, **options)
        return image_grid(pictures, lines, min(4, len(pictures)), tile=pictures[0].width)
    return strip(trace, picture, processor, columns=4, side=side // 4, **options)


def images_of_picture(trace: PromptTrace, picture: Any, processor: Any, index: int) -> list[ImageTrace]:
    """The images of ``trace`` that ``picture`` became: one, or one per tile or frame; ``picture`` None: one."""
    if isinstance(picture, Image.Image):
        return images_of(trace, index, tiles_of(picture.size, processor))
    filmed = picture is None or images_of(trace, index)[0].layout.medium == "video"
    return images_of(trace, index, 1 if filmed else len(picture))
