"""Centre crop and padding to a square: which part of an image one view shows."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.upstream.processors import Settings, entry

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels of the original image


def squared(size: tuple[int, int]) -> Box:
    """The square around an image of ``size`` (width, height) that a border of half the difference makes of it."""
    side = max(size)
    left, top = -((side - size[0]) // 2), -((side - size[1]) // 2)
    return float(left), float(top), float(left + side), float(top + side)


def cropped(size: tuple[int, int], setting: Settings) -> Box:
    """What is left after the padding, the resize and the centre crop that ``setting`` asks for (CLIP, LLaVA, SigLIP, ...)."""
    if not setting("do_center_crop"):
        return 0.0, 0.0, float(size[0]), float(size[1])
    # LLaVA's own processor squares the image with a border first
    left, top, right, bottom = squared(size) if setting("do_pad") else (0.0, 0.0, float(size[0]), float(size[1]))
    width, height = int(right - left), int(bottom - top)
    resized = _resized(width, height, setting("size")) if setting("do_resize") else (width, height)
    scale = width / resized[0], height / resized[1]
    crop = entry(setting("crop_size"), "width"), entry(setting("crop_size"), "height")
    # A crop larger than the image pads it; both round like transformers' center_crop.
    start = [(r - c) // 2 if r >= c else -((c - r) // 2) for r, c in zip(resized, crop)]
    x, y = left + scale[0] * start[0], top + scale[1] * start[1]
    return x, y, x + crop[0] * scale[0], y + crop[1] * scale[1]


def _resized(width: int, height: int, size: Any) -> tuple[int, int]:
    shortest = entry(size, "shortest_edge")
    if shortest and not entry(size, "longest_edge"):
        short, long = sorted((width, height))
        other = int(shortest * long / short)
        return (shortest, other) if width <= height else (other, shortest)
    if entry(size, "height") and entry(size, "width"):
        return entry(size, "width"), entry(size, "height")
    raise ValueError(
        f"size={size!r} of the image processor followed by a centre crop cannot be drawn; allowed: shortest_edge, or "
        "height and width. Pass processor=None to lay the grid over the whole image."
    )
