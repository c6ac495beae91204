"""Images with one bright square, and what of it falls into each token: the measure of boxes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

PLAIN = {"do_normalize": False, "return_tensors": "pt"}


SIZES = [(300, 200), (200, 300), (340, 340), (97, 411), (640, 480), (1000, 210)]


PATCH = 14


def bright(size: tuple[int, int], square: tuple[int, int, int, int]) -> Image.Image:
    """A black image of ``size`` (width, height) with one white square (left, top, right, bottom)."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    left, top, right, bottom = square
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


def squares(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Three squares of a third of the shorter side: in a corner, off the middle, at the far end."""
    width, height = size
    edge = min(size) // 3
    places = [(0, 0), ((width - edge) // 2 + 3, (height - edge) // 3), (width - edge, height - edge)]
    return [(x, y, x + edge, y + edge) for x, y in places]


def covered(boxes: np.ndarray, square: tuple[int, int, int, int]) -> np.ndarray:
    """(N,) share of each box that the square covers."""
    low = np.maximum(boxes[:, :2], square[:2])
    high = np.minimum(boxes[:, 2:], square[2:])
    return (high - low).clip(0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)


def cell_means(pixels: torch.Tensor, height: int, width: int) -> np.ndarray:
    """(height * width,) brightness of equal cells of an image (3, H, W), H and W multiples of the grid."""
    gray = pixels.float().mean(0)
    cells = gray.unfold(0, gray.shape[0] // height, gray.shape[0] // height)
    return cells.unfold(1, gray.shape[1] // width, gray.shape[1] // width).mean((2, 3)).flatten().numpy()


def check(brightness: np.ndarray, share: np.ndarray, tolerance: float = 0.08) -> None:
    """Resampling blurs the rim of the square; nothing else may differ, and the bright tokens are the covered ones."""
    assert brightness.shape == share.shape
    assert np.abs(brightness - share).max() < tolerance
    clear = np.abs(share - 0.5) > tolerance
    assert ((brightness > 0.5) == (share > 0.5))[clear].all()
    assert share.any()
