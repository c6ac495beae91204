"""Kept tokens over the original pixels, merged groups in their mean colour, scores as a heat map."""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from tokenreduce.draw.caption import BLACK, INK, PALE, WHITE, captioned, fit, font_of, key, role_color, swatches_of
from tokenreduce.draw.fate import Fate, fate_of
from tokenreduce.draw.heat import bar, colors_of, scale_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenreduce.provenance import ImageTrace, Trace

MERGED = 1000  # kinds of pixels: merged groups count from here
GAP = 10  # pixels between panels


def draw(
    trace: Trace | ImageTrace,
    image: Image.Image,
    processor: Any = None,
    *,
    index: int = 0,
    frame: int = 0,
    step: int | None = None,
    layer: int | None = None,
    heat: bool = False,
    caption: bool | str = True,
    side: int = 640,
) -> Image.Image:
    """Kept tokens in their own pixels, dropped ones dark and grey, merged groups in their mean colour.

    Outlines surround kept regions and merged groups, coloured by role where the method names roles. Parts of the image
    that the processor cuts off are pale and hatched. An image that the model saw whole and in tiles is drawn twice, side
    by side, the tiles in place.

    Args:
        trace: ``tr.trace(model)``, or one of its ``images``.
        image: the original image (for a video, the frame ``frame``), as it was given to the processor.
        processor: see ``cell_boxes``.
        index: which image of a ``Trace``, in the order of the call, from 0.
        frame: which frame of a video, from 0; a temporal patch counts as one frame.
        step: draw the image after so many of its stages, 0 for all tokens; ``step_names`` says what they are.
        layer: draw what decoder layer ``layer`` (from 0) works on. Neither: what is left in the end.
        heat: colour tokens by the score they were last ranked by; kept ones are outlined.
        caption: True writes counts and a legend below the picture, a text is written instead of the counts.
        side: length of the longer side of the picture, pixels.

    Returns:
        An RGB picture; with a caption it is higher by a few lines.

    Errors: ``ValueError`` for an index, frame, step or layer that the trace does not have, and for a heat map where no
        method ranked.
    """
    fate = fate_of(trace, image.size, processor, index, step, layer)
    if not 0 <= frame <= fate.frame.max(initial=0):
        raise ValueError(f"frame={frame}; allowed: 0 to {fate.frame.max(initial=0)}, the frames of this image")
    if heat and fate.score is None:
        raise ValueError("heat=True, but no method ranked the tokens of this image by a score; leave it out")
    score = fate.score if heat else None
    ranks = None if score is None else scale_of(score)
    view = Canvas(image, side)
    shown = view.paint(fate, frame, ranks, group_colors(fate, [view], [frame]))
    if caption is False:
        return shown
    below = key(swatches_of(fate, image.size), shown.width) if score is None else bar(score, shown.width)
    return captioned(shown, caption if isinstance(caption, str) else fate.text, below)


def figure(trace: Trace | ImageTrace, image: Image.Image, processor: Any = None, **options: Any) -> Figure:
    """``draw`` as a matplotlib figure of its own, without pyplot; arguments as ``draw``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = draw(trace, image, processor, **options)
    made = Figure(figsize=(picture.width / 100, picture.height / 100), dpi=100)
    FigureCanvasAgg(made)
    axes = made.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(np.asarray(picture))
    axes.set_axis_off()
    return made


class Canvas:
    """One picture, or frame, at the size at which it is drawn."""

    def __init__(self, image: Image.Image, side: int) -> None:
        zoom = side / max(image.size)
        self.side = side
        self.size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
        self.zoom = np.tile([self.size[0] / image.width, self.size[1] / image.height], 2)
        small = image.convert("RGB").resize(self.size, Image.Resampling.LANCZOS)
        self.pixels = np.asarray(small, dtype=np.float32)

    def tokens(self, fate: Fate, panel: int, frame: int) -> np.ndarray:
        """(height, width) long, the token of a panel and frame that looks at each pixel; -1: none."""
        spans = self.spans(fate.boxes)
        token = np.full(self.size[::-1], -1)
        for number in np.flatnonzero((fate.panel == panel) & (fate.frame == frame)):
            left, top, right, bottom = spans[number]
            token[top:bottom, left:right] = number
        return token

    def places(self, fate: Fate) -> np.ndarray:
        """(N, 4) left, top, right, bottom of each token in the picture that ``paint`` makes, its panel considered."""
        shift = fate.panel * (self.size[0] + GAP)
        return self.spans(fate.boxes) + np.stack([shift, 0 * shift, shift, 0 * shift], axis=1)

    def spans(self, boxes: np.ndarray) -> np.ndarray:
        """``boxes`` (N, 4) of the original picture in whole pixels of this one, cut to it."""
        return np.rint(np.asarray(boxes) * self.zoom).astype(int).clip(0, np.tile(self.size, 2))

    def paint(self, fate: Fate, frame: int, ranks: tuple[float, float] | None, groups: np.ndarray) -> Image.Image:
        """All panels, side by side; ``ranks`` paints scores, else ``groups`` (K, 3) are the colours of merged groups."""
        painted = [self._panel(fate, panel, frame, ranks, groups) for panel in range(len(fate.panels))]
        if len(painted) == 1:
            return painted[0]
        width, height = self.size
        out = Image.new("RGB", (len(painted) * (width + GAP) - GAP, height + 24), WHITE)
        pen = ImageDraw.Draw(out)
        for number, (picture, panel) in enumerate(zip(painted, fate.panels)):
            left = number * (width + GAP)
            out.paste(picture, (left, 0))
            font = fit(panel.label, font_of(14), width)
            pen.text((left + width / 2, height + 4), panel.label, fill=INK, font=font, anchor="ma")
        return out

    def _panel(
        self, fate: Fate, panel: int, frame: int, ranks: tuple[float, float] | None, groups: np.ndarray
    ) -> Image.Image:
        token, merged = self.tokens(fate, panel, frame), fate.merged
        # What a pixel belongs to: a merged group (from MERGED on), a kept role (0 or more), dropped (-1), not seen (-2),
        # a group that sits in another frame (-4).
        kind = np.where(merged, fate.owner + MERGED, np.where(fate.owner >= 0, fate.role, -1))
        kind = np.where(fate.away, -4, kind)
        kinds = np.where(token >= 0, kind[token], -2).astype(np.int32)
        if ranks is None or fate.score is None:
            canvas = _painted(self.pixels, np.where((token >= 0) & merged[token], fate.owner[token], -1), kinds, groups)
        else:
            canvas = _painted(self.pixels, np.full(kinds.shape, -1), np.where(kinds == -2, -2, 0), groups)
            canvas[token >= 0] = (
                0.3 * _gray(canvas[token >= 0])[..., None] + 0.7 * colors_of(fate.score, *ranks)[token[token >= 0]]
            )
        if len(fate.panels[panel].boxes) > 1:
            _ruled(canvas, self.spans(np.array(fate.panels[panel].boxes)))
        _outline(canvas, kinds, max(1, round(self.side / 320)))
        return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def group_colors(fate: Fate, views: list[Canvas], frames: list[int]) -> np.ndarray:
    """(K, 3) mean colour of the pixels of each survivor, over all its tokens in the given frames."""
    count = int(fate.owner.max(initial=-1)) + 1
    total, area = np.zeros((count, 3)), np.zeros(count)
    for view, frame in zip(views, frames):
        for panel in range(len(fate.panels)):
            token = view.tokens(fate, panel, frame)
            owner = np.where(token >= 0, fate.owner[token], -1)
            index = owner[owner >= 0]
            area += np.bincount(index, minlength=count)
            for channel in range(3):
                total[:, channel] += np.bincount(index, view.pixels[..., channel][owner >= 0], minlength=count)
    return total / area.clip(1)[:, None]


def _gray(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _painted(pixels: np.ndarray, group: np.ndarray, kinds: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each pixel (height, width, 3) by its fate; ``group`` (height, width) is its merged group or -1."""
    gray = _gray(pixels)
    y, x = np.ogrid[: gray.shape[0], : gray.shape[1]]
    unseen, out = kinds == -2, pixels.copy()
    out[unseen] = (170 + gray[unseen] / 3)[:, None]
    out[unseen & ((x + y) % 12 < 2)] = PALE
    out[kinds == -1] = gray[kinds == -1][:, None] * 0.36
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
