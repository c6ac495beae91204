"""Videos: one picture per frame, as a strip and as an animated picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from tokenreduce.draw.canvas import Canvas, group_colors
from tokenreduce.draw.caption import captioned
from tokenreduce.draw.geometry.boxes import tiles_of
from tokenreduce.draw.heat_map import color_bar, scale_of
from tokenreduce.draw.image_grid import image_grid
from tokenreduce.draw.legend import key, swatches_of
from tokenreduce.draw.provenance_map import joined, provenance_map
from tokenreduce.draw.stages import describe, images_of, stages_at
from tokenreduce.files import writing

if TYPE_CHECKING:
    from tokenreduce.provenance import ImageTrace, PromptTrace


def draw_frames(
    trace: PromptTrace | ImageTrace,
    frames: Sequence[Image.Image],
    processor: Any = None,
    *,
    index: int = 0,
    step: int | None = None,
    layer: int | None = None,
    heat: bool = False,
    side: int = 240,
) -> DrawnFrames:
    """Every frame drawn, a line on each, and the key to all of them.

    Args:
        trace: of a video, or of frames given as images, which then are images ``index`` and following.
        frames: the original frames. Where a temporal patch spans several, the first of each is drawn.
        processor, step, layer, heat: see ``draw``; colours of merged groups and of scores mean the same in every frame.
        side: longer side of each frame, pixels.

    Errors: those of ``draw``, and ``ValueError`` for fewer frames than the trace has.
    """
    layout = images_of(trace, index)[0].layout
    filmed = layout.medium == "video"
    count = layout.frames if filmed else len(frames)
    if len(frames) < count or count < 1:
        raise ValueError(f"frames={len(frames)}; allowed: at least {max(1, count)}, the frames of the trace")
    shown = [frames[t * len(frames) // count] for t in range(count)]
    size, of = shown[0].size, [0] * count
    if not filmed and tiles_of(size, processor) > 1:  # frames of a video are never cut into tiles
        processor = getattr(processor, "video_processor", processor)
    images = images_of(trace, index, 1 if filmed else count)
    maps = [provenance_map(image, size, processor, step=step, layer=layer) for image in images]
    if filmed:
        maps, of, images = maps * count, list(range(count)), images * count
    if heat and any(tokens.score is None for tokens in maps):
        raise ValueError("heat=True, but no method ranked the tokens of this video by a score; leave it out")
    scores = np.concatenate([f.score for f in maps if f.score is not None]) if heat else np.empty(0)
    ranks = scale_of(scores) if heat else None
    views = [Canvas(frame, side) for frame in shown]
    together = group_colors(maps[0], views, of) if filmed else None
    pictures, lines = [], []
    for number, (view, tokens, image, t) in enumerate(zip(views, maps, images, of)):
        colors = group_colors(tokens, [view], [t]) if together is None else together
        pictures.append(view.paint(tokens, t, ranks, colors))
        passed = image.stages[: stages_at(image, step, layer)]
        left = np.asarray(passed[-1].source) if passed else np.arange(image.tokens_in)
        lines.append(
            f"frame {number}: {int((tokens.frame[left[left >= 0]] == t).sum())} of {int((tokens.frame == t).sum())}"
        )
    text = describe(*(images[:1] if filmed else images), step=step, layer=layer)
    whole = maps[0] if filmed else joined(maps, text)
    return DrawnFrames(
        pictures, lines, text, partial(color_bar, scores) if heat else partial(key, swatches_of(whole, size))
    )


class DrawnFrames(NamedTuple):
    """Frames, a line on each, words on the whole, and the key to the colours, made for a width in pixels."""

    pictures: list[Image.Image]
    lines: list[str]
    text: str
    below: Callable[[int], Image.Image]


def strip(
    trace: PromptTrace | ImageTrace,
    frames: Sequence[Image.Image],
    processor: Any = None,
    *,
    columns: int = 8,
    **options: Any,
) -> Image.Image:
    """A video as a contact sheet: each frame with the number of its tokens that stay; arguments as ``draw_frames``."""
    pictures, lines, text, below = draw_frames(trace, frames, processor, **options)
    laid = image_grid(pictures, lines, min(columns, len(pictures)), tile=pictures[0].width)
    return captioned(laid, text, below(laid.width))


def animate(
    trace: PromptTrace | ImageTrace,
    frames: Sequence[Image.Image],
    processor: Any = None,
    *,
    seconds: float = 0.5,
    **options: Any,
) -> Animation:
    """A video as an animated picture, ``seconds`` per frame; other arguments as ``draw_frames``.

    Example: ``tr.draw.animate(trace, frames, processor).save("kept.gif")``
    """
    pictures, lines, text, below = draw_frames(trace, frames, processor, **{"side": 420, **options})
    under = below(pictures[0].width)
    return Animation(tuple(captioned(p, f"{text} – {line}", under) for p, line in zip(pictures, lines)), seconds)


@dataclass(frozen=True)
class Animation:
    """Pictures one after the other, ``seconds`` each; shows itself in a notebook."""

    pictures: tuple[Image.Image, ...]
    seconds: float

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a .gif, or an animated .png in full colours. Errors: as ``tokenreduce.files.writing``."""
        with writing(path, (".gif", ".png"), overwrite) as file:
            self._write(file, Path(path).suffix[1:].upper())

    def _write(self, file: IO[bytes], kind: str) -> None:
        high = max(p.height for p in self.pictures)
        wide = max(p.width for p in self.pictures)
        pages = [Image.new("RGB", (wide, high), "white") for _ in self.pictures]
        for page, picture in zip(pages, self.pictures):
            page.paste(picture, (0, 0))
        if kind == "GIF":
            pages = [page.quantize(256, dither=Image.Dither.NONE) for page in pages]
        pages[0].save(file, kind, save_all=True, append_images=pages[1:], duration=round(1000 * self.seconds), loop=0)

    def _repr_html_(self) -> str:
        held = io.BytesIO()
        self._write(held, "GIF")
        return f'<img src="data:image/gif;base64,{base64.b64encode(held.getvalue()).decode()}">'
