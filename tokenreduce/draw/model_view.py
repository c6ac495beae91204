"""What the vision tower was given, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image


def pixels_of(inputs: Mapping[str, Any], index: int) -> Image.Image | None:
    """Image ``index`` as the vision tower was given it, in approximate colours; None where pixels come in other shapes."""
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or pixels.shape[1] != 3 or index >= len(pixels):
        return None
    image = pixels[index].float().cpu()
    low, high = image.min(), image.max()
    return Image.fromarray(((image - low) / (high - low).clamp_min(1e-6) * 255).byte().permute(1, 2, 0).numpy())
