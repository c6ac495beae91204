"""Preprocessing written as a list of torchvision transforms (timm, open_clip), in the words of an image processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def from_transforms(transforms: Sequence[Any]) -> dict[str, Any]:
    """``do_resize``, ``size``, ``do_center_crop``, ``crop_size`` of what stands in ``transforms``.

    Errors: ``ValueError`` for anything else that moves pixels, such as padding or random crops.
    """
    found: dict[str, Any] = {"do_resize": False, "do_center_crop": False}
    for transform in transforms:
        kind = type(transform).__name__
        size = getattr(transform, "size", None)
        if kind == "Resize" and not found["do_center_crop"]:
            sides = [size] if isinstance(size, int) else list(size or ())
            names = ("height", "width") if len(sides) == 2 else ("shortest_edge",)
            found |= {"do_resize": True, "size": dict(zip(names, sides))}
        elif kind == "CenterCrop":
            sides = [size, size] if isinstance(size, int) else list(size or ())
            found |= {"do_center_crop": True, "crop_size": dict(zip(("height", "width"), sides))}
        elif any(word in kind for word in ("Resize", "Crop", "Pad", "Flip", "Rotation", "Affine", "Perspective")):
            raise ValueError(
                f"processor holds {kind}, which cannot be undone; allowed: Resize, then CenterCrop. Pass processor=None to "
                "lay the grid over the whole image, or a dictionary of settings (do_resize, size, do_center_crop, crop_size)"
            )
    return found
