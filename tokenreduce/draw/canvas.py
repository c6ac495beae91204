"""One picture being painted: every pixel by the token that looks at it, outlines around what is kept."""

from __future__ import annotations

from functools import reduce
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from tokenreduce.draw.caption import BLACK, INK, WHITE, fit, font_of
from tokenreduce.draw.heat_map import colors_of
from tokenreduce.draw.legend import NEVER, PALE, role_color
from tokenreduce.draw.provenance_map import ProvenanceMap

MERGED = 1000  # kinds of pixels: merged groups count from here
GAP = 10  # pixels between panels


class Canvas:
    """One picture, or frame, at the size at which it is drawn."""

    def __init__(self, image: Image.Image, side: int) -> None:
        zoom = side / max(image.size)
        self.side = side
        self.size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
        self.zoom = np.tile([self.size[0] / image.width, self.size[1] / image.height], 2)
        small = image.convert("RGB").resize(self.size, Image.Resampling.LANCZOS)
        self.pixels = np.asarray(small, dtype=np.float32)

    def token_at(self, tokens: ProvenanceMap, panel: int, frame: int) -> np.ndarray:
        """(height, width) long, the token of a panel and frame that looks at each pixel; -1: none."""
        spans = self.spans(tokens.boxes)
        token = np.full(self.size[::-1], -1)
        for number in np.flatnonzero((tokens.panel == panel) & (tokens.frame == frame)):
            left, top, right, bottom = spans[number]
            token[top:bottom, left:right] = number
        return token

    def places(self, tokens: ProvenanceMap) -> np.ndarray:
        """(N, 4) left, top, right, bottom of each token in the picture that ``paint`` makes, its panel considered."""
        shift = tokens.panel * (self.size[0] + GAP)
        return self.spans(tokens.boxes) + np.stack([shift, 0 * shift, shift, 0 * shift], axis=1)

    def spans(self, boxes: np.ndarray) -> np.ndarray:
        """``boxes`` (N, 4) of the original picture in whole pixels of this one, cut to it."""
        return np.rint(np.asarray(boxes) * self.zoom).astype(int).clip(0, np.tile(self.size, 2))

    def paint(
        self, tokens: ProvenanceMap, frame: int, ranks: tuple[float, float] | None, groups: np.ndarray
    ) -> Image.Image:
        """All panels, side by side; ``ranks`` paints scores, else ``groups`` (K, 3) are the colours of merged groups."""
        painted = [self._panel(tokens, panel, frame, ranks, groups) for panel in range(len(tokens.panels))]
        if len(painted) == 1:
            return painted[0]
        width, height = self.size
        out = Image.new("RGB", (len(painted) * (width + GAP) - GAP, height + 24), WHITE)
        pen = ImageDraw.Draw(out)
        for number, (picture, panel) in enumerate(zip(painted, tokens.panels)):
            left = number * (width + GAP)
            out.paste(picture, (left, 0))
            font = fit(panel.label, font_of(14), width)
            pen.text((left + width / 2, height + 4), panel.label, fill=INK, font=font, anchor="ma")
        return out

    def _panel(
        self, tokens: ProvenanceMap, panel: int, frame: int, ranks: tuple[float, float] | None, groups: np.ndarray
    ) -> Image.Image:
        token, merged = self.token_at(tokens, panel, frame), tokens.merged
        # What a pixel belongs to: a merged group (from MERGED on), a kept role (0 or more), dropped (-1), not seen (-2),
        # a group that sits in another frame (-4), never in the vision tower (-5).
        kind = np.where(merged, tokens.owner + MERGED, np.where(tokens.owner >= 0, tokens.role, -1))
        kind = np.where(tokens.unseen, -5, np.where(tokens.away, -4, kind))
        kinds = np.where(token >= 0, kind[token], -2).astype(np.int32)
        if ranks is None or tokens.score is None:
            canvas = _painted(
                self.pixels, np.where((token >= 0) & merged[token], tokens.owner[token], -1), kinds, groups
            )
        else:
            canvas = _painted(self.pixels, np.full(kinds.shape, -1), np.where(kinds == -2, -2, 0), groups)
            canvas[token >= 0] = (
                0.2 * _gray(canvas[token >= 0])[..., None] + 0.8 * colors_of(tokens.score, *ranks)[token[token >= 0]]
            )
        if len(tokens.panels[panel].boxes) > 1:
            _ruled(canvas, self.spans(np.array(tokens.panels[panel].boxes)))
        _outline(canvas, kinds, max(1, round(self.side / 320)))
        return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def group_colors(tokens: ProvenanceMap, views: list[Canvas], frames: list[int]) -> np.ndarray:
    """(K, 3) mean colour of the pixels of each survivor, over all its tokens in the given frames."""
    count = int(tokens.owner.max(initial=-1)) + 1
    total, area = np.zeros((count, 3)), np.zeros(count)
    for view, frame in zip(views, frames):
        for panel in range(len(tokens.panels)):
            token = view.token_at(tokens, panel, frame)
            owner = np.where(token >= 0, tokens.owner[token], -1)
            index = owner[owner >= 0]
            area += np.bincount(index, minlength=count)
            for channel in range(3):
                total[:, channel] += np.bincount(index, view.pixels[..., channel][owner >= 0], minlength=count)
    return total / area.clip(1)[:, None]


def _gray(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _painted(pixels: np.ndarray, group: np.ndarray, kinds: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each pixel (height, width, 3) by what became of its token; ``group`` (height, width) is its merged group or -1."""
    gray = _gray(pixels)
    y, x = np.ogrid[: gray.shape[0], : gray.shape[1]]
    unseen, out = kinds == -2, pixels.copy()
    out[unseen] = (170 + gray[unseen] / 3)[:, None]
    out[unseen & ((x + y) % 12 < 2)] = PALE
    out[kinds == -1] = gray[kinds == -1][:, None] * 0.36
    out[kinds == -5] = gray[kinds == -5][:, None] / 255 * np.array(NEVER)
    out[group >= 0] = groups[group[group >= 0]]
    out[kinds == -4] *= 0.55
    return out


def _ruled(canvas: np.ndarray, spans: np.ndarray) -> None:
    """Draw, in place, dotted lines where tiles meet."""
    height, width = canvas.shape[:2]
    dots_y, dots_x = np.arange(height) % 8 < 4, np.arange(width) % 8 < 4
    for left, top, _, _ in spans:
        for shift, color in ((-1, BLACK), (0, WHITE)):
            if 0 < left < width:
                canvas[dots_y, left + shift] = color
            if 0 < top < height:
                canvas[top + shift, dots_x] = color


def _outline(canvas: np.ndarray, kinds: np.ndarray, width: int) -> None:
    """Draw, in place, outlines inside the regions of equal ``kinds``; a dark rim shows them on bright pixels."""

    def border(reach: int) -> np.ndarray:
        """Pixels of kept regions with another kind not further than ``reach`` pixels away, or at the picture's edge."""
        padded, (height, width) = np.pad(kinds, reach, constant_values=-3), kinds.shape
        shifts = product((0, reach, 2 * reach), repeat=2)  # cells are wider than ``reach``: its far end is enough
        return reduce(np.logical_or, (padded[y : y + height, x : x + width] != kinds for y, x in shifts)) & (kinds >= 0)

    ring = border(1 + width)
    canvas[ring] = WHITE
    for role in np.unique(kinds[(kinds > 0) & (kinds < MERGED)]):
        # the first role has twice the width
        canvas[(ring if role > 1 else border(1 + 2 * width)) & (kinds == role)] = role_color(role)
    canvas[border(1)] = BLACK
