"""How a multimodal model of transformers is called.

| seam | seen |
| --- | --- |
| `generate` encodes first and hands on `mm_encoder_outputs`, a dict of `image` and `video` | from 5.18 |
| names of pixel arguments | 5.17 to 5.24 |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "image_hidden_states")


def encoded_ahead(arguments: Mapping[str, Any]) -> list[Any]:
    """Image and video features that were encoded before the forward pass."""
    encoded = arguments.get("mm_encoder_outputs") or {}
    return [x for x in (encoded.get("image"), encoded.get("video")) if x is not None]


def pixels_of(arguments: Mapping[str, Any]) -> list[Any]:
    """Pixels among the ``arguments`` of a call."""
    return [arguments[name] for name in PIXELS if arguments.get(name) is not None]


def prompt_columns(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Columns of the prompt that ``generate(*args, **kwargs)`` is given; None where it is given none."""
    given = [*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))]
    found = next((x for x in given if x is not None), None)
    return None if found is None else found.shape[1]
