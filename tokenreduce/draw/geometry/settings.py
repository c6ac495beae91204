"""What a processor, or whatever else prepares pixels, is set to."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.upstream.processors import Settings, pixel_processor, reader
from tokenreduce.draw.geometry.transforms import from_transforms
from tokenreduce.layout import Layout


def settings_of(processor: Any, layout: Layout | None = None) -> Settings:
    """Reads the settings of ``processor`` by name, None for those it does not have; see ``cell_boxes``.

    Errors: ``ValueError`` for an object without settings of an image processor.
    """
    source = pixel_processor(processor, video=layout is not None and layout.medium == "video")
    if hasattr(source, "transforms"):
        source = from_transforms(source.transforms)
    setting = reader(source, processor)
    if source is not None and all(setting(name) is None for name in ("size", "do_resize", "do_center_crop")):
        raise ValueError(
            f"processor={type(processor).__name__}, which has no settings of an image processor (size, do_resize, "
            "do_center_crop); pass the processor that made the model's inputs, or None to lay the grid over the whole image"
        )
    return setting
