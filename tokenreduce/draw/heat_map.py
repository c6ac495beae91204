"""Importance as colour: what a method ranked its tokens by, over the picture."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tokenreduce.draw.caption import INK, WHITE, font_of

NEVER = (16, 16, 16)  # tokens that were gone before anything ranked them: darker than any score
# One hue, so that lightness alone tells the score to every reader and on paper: hue 60 degrees of CIELAB, lightness 28, 44,
# 59, 74, 90, each with as much chroma as sRGB holds there.
RAMP = ((108, 50, 0), (164, 79, 0), (223, 111, 1), (254, 161, 93), (254, 220, 199))


def scale_of(score: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of the finite scores, without the outermost hundredth on either side."""
    finite = score[np.isfinite(score)]
    if not len(finite):
        raise ValueError("heat=True, but no score of this image is a finite number")
    low, high = np.quantile(finite, (0.01, 0.99))
    return float(low), float(high)


def colors_of(score: np.ndarray, low: float, high: float) -> np.ndarray:
    """(N, 3) float32 RGB of the scores (N,) of one hue, from dark (low) to bright (high)."""
    share = ((score - low) / max(high - low, np.finfo(float).tiny)).clip(0, 1)
    stops = np.linspace(0, 1, len(RAMP))
    painted = np.stack([np.interp(np.nan_to_num(share), stops, channel) for channel in zip(*RAMP)], axis=1)
    painted[np.isnan(score)] = NEVER
    return painted.astype(np.float32)


def color_bar(score: np.ndarray, width: int) -> Image.Image:
    """The key to the colours of the scores (N,)."""
    low, high = scale_of(score)
    font, pad, high_edge = font_of(14), 8, 18
    texts = f"score {low:.3g}", f"{high:.3g} or more" + "; darkest: not ranked" * bool(np.isnan(score).any())
    left, right = (round(font.getlength(text)) for text in texts)
    out = Image.new("RGB", (width, 28), WHITE)
    pen = ImageDraw.Draw(out)
    start, stop = pad + left + 6, max(pad + left + 7, min(width - pad - right - 6, pad + left + 246))
    ramp = colors_of(np.linspace(0, 1, stop - start), 0, 1).astype(np.uint8)
    out.paste(Image.fromarray(np.tile(ramp, (high_edge, 1, 1))), (start, 2))
    pen.text((pad, 2), texts[0], fill=INK, font=font)
    pen.text((stop + 6, 2), texts[1], fill=INK, font=font)
    return out
