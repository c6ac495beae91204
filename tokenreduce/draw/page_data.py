"""What the page of ``write_page`` is made of: of one picture, every stage as JPEG images and lists by token."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokenreduce.draw.canvas import GAP, Canvas
from tokenreduce.draw.caption import WHITE
from tokenreduce.draw.geometry.boxes import tiles_of
from tokenreduce.draw.heat_map import NEVER, colors_of, scale_of
from tokenreduce.draw.legend import GRAY, swatches_of
from tokenreduce.draw.overlay import draw
from tokenreduce.draw.provenance_map import ProvenanceMap, provenance_map
from tokenreduce.draw.stages import images_of, step_names
from tokenreduce.draw.style import css_color, key_entries
from tokenreduce.draw.video import draw_frames
from tokenreduce.provenance import ImageTrace, PromptTrace

QUALITY = 88  # of the JPEG pictures
COLUMNS = 4  # frames side by side


def picture_data(
    trace: PromptTrace | ImageTrace, picture: Any, processor: Any, index: int, side: int
) -> dict[str, Any]:
    """Steps, places and names of the tokens of one image, or of a video given as its frames; see ``write_page``."""
    filmed = not isinstance(picture, Image.Image)
    size = picture[0].size if filmed else picture.size
    images = images_of(trace, index, 1 if filmed else tiles_of(size, processor))
    longest = max(images, key=lambda own: len(own.stages))
    steps, whole = [], provenance_map(trace, size, processor, index, 0)
    columns = torch.cat([own.columns for own in images]).tolist()
    frame_at = dict(zip(columns, whole.frame.tolist(), strict=True)) if filmed else {}
    for step, label in enumerate(step_names(longest)):
        reached = [min(step, len(own.stages)) for own in images]
        tokens = provenance_map(trace, size, processor, index, step)
        seats = np.concatenate([own.columns if n == 0 else own.stages[n - 1].seats for own, n in zip(images, reached)])
        drawn = _drawn(trace, picture, processor, index, step, side)
        found: dict[str, Any] = {
            "label": label,
            "text": tokens.text,
            "picture": _embedded(drawn),
            "key": key_entries(swatches_of(tokens, size)),
            "owner": tokens.owner.tolist(),
            "kept": tokens.kept,
            "seats": seats.tolist(),
            "seated": [frame_at.get(int(column), -1) for column in seats],
            "role": tokens.role.tolist(),
            "roles": list(tokens.names),
            "score": None,
            "heat": None,
        }
        if tokens.score is not None and np.isfinite(tokens.score).any():
            low, high = scale_of(tokens.score)
            ends = colors_of(np.array([low, high]), low, high).astype(int).tolist()
            found["score"] = [float(f"{s:.6g}") if math.isfinite(s) else None for s in tokens.score]
            found["heat"] = _embedded(_drawn(trace, picture, processor, index, step, side, heat=True))
            found["bar"] = [(f"score {v:.3g}", css_color(c), css_color(c)) for v, c in zip((low, high), ends)]
            found["bar"] += [("not ranked", css_color(NEVER), css_color(NEVER))] * bool(np.isnan(tokens.score).any())
            found["bar"] += [("kept", css_color(GRAY), css_color(WHITE))]
        steps.append(found)
    return {
        "label": f"video {index}" if filmed else f"picture {index}",
        "width": drawn.width,
        "height": drawn.height,
        "steps": steps,
        "places": _places(whole, picture, side).tolist(),
        "names": _names(images),
        "frames": _frames(whole, picture, side) if filmed else None,
    }


def _frames(tokens: ProvenanceMap, pictures: Sequence[Image.Image], side: int) -> dict[str, Any]:
    """Where the frames of a video lie in what ``_drawn`` gives, and the frame of each token."""
    width, height = Canvas(pictures[0], side // min(COLUMNS, len(pictures))).size
    place = {"width": width, "height": height, "gap": GAP, "columns": COLUMNS}
    return {**place, "of": tokens.frame.tolist(), "count": int(tokens.frame.max()) + 1}


def _drawn(
    trace: PromptTrace | ImageTrace, picture: Any, processor: Any, index: int, step: int, side: int, heat: bool = False
) -> Image.Image:
    if isinstance(picture, Image.Image):
        return draw(trace, picture, processor, index=index, step=step, heat=heat, side=side, caption=False)
    across = side // min(COLUMNS, len(picture))
    frames = draw_frames(trace, picture, processor, index=index, step=step, heat=heat, side=across).pictures
    (width, height), rows = frames[0].size, -(-len(frames) // COLUMNS)
    wide = min(COLUMNS, len(frames))
    out = Image.new("RGB", (wide * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, frame in enumerate(frames):
        out.paste(frame, (number % COLUMNS * (width + GAP), number // COLUMNS * (height + GAP)))
    return out


def _places(tokens: ProvenanceMap, picture: Any, side: int) -> np.ndarray:
    """(N, 4) left, top, right, bottom of each token in what ``_drawn`` gives."""
    if isinstance(picture, Image.Image):
        return Canvas(picture, side).places(tokens)
    canvas = Canvas(picture[0], side // min(COLUMNS, len(picture)))
    across = tokens.frame % COLUMNS * (canvas.size[0] + GAP)
    down = tokens.frame // COLUMNS * (canvas.size[1] + GAP)
    return canvas.places(tokens) + np.stack([across, down, across, down], axis=1)


def _names(images: Sequence[ImageTrace]) -> list[str]:
    """Where each token sits, in words."""
    names = []
    for tile, image in enumerate(images):
        views = image.layout.views or (image.layout,)
        ends = np.cumsum([view.frames * view.height * view.width for view in views])
        for place in image.layout.patches:
            view = int(np.searchsorted(ends, place, side="right"))
            row, column = divmod(place - (int(ends[view - 1]) if view else 0), views[view].width)
            where = f"row {row % views[view].height}, column {column}"
            if views[view].frames > 1:
                where = f"frame {row // views[view].height}, {where}"
            if len(views) > 1 or len(images) > 1:
                where = f"view {view + tile}, {where}"
            names.append(where)
    return names


def _embedded(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"
