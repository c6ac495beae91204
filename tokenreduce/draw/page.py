"""One self-contained page: every stage of a prompt's picture, with what stands for each token under the pointer."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenreduce.draw.canvas import Canvas
from tokenreduce.draw.geometry.boxes import tiles_of
from tokenreduce.draw.heat_map import colors_of, scale_of
from tokenreduce.draw.legend import Color, swatches_of
from tokenreduce.draw.overlay import draw
from tokenreduce.draw.provenance_map import provenance_map
from tokenreduce.draw.stages import images_of, step_names
from tokenreduce.files import writing

if TYPE_CHECKING:
    from PIL import Image

    from tokenreduce.provenance import ImageTrace, PromptTrace

QUALITY = 88  # of the JPEG pictures


def write_page(
    path: str | Path,
    trace: PromptTrace | ImageTrace,
    image: Image.Image,
    processor: Any = None,
    *,
    index: int = 0,
    title: str = "Visual tokens",
    facts: Sequence[tuple[str, str]] = (),
    side: int = 720,
    overwrite: bool = False,
) -> None:
    """Write an HTML page that needs no other file and no network.

    A slider goes through the stages (decoder layers included), pointing at the picture tells which source tokens stand
    together, where, in which role, and by which score they were ranked.

    Args:
        path: a name ending in .html.
        trace, image, processor, index, side: see ``draw``.
        title: heading.
        facts: lines under the heading, (name, text).
        overwrite: whether a file of that name may be replaced.

    Errors: those of ``draw`` and of ``tokenreduce.files.writing``.
    """
    with writing(path, (".html", ".htm"), overwrite) as file:
        about = {"title": title, "facts": list(facts), **_content(trace, image, processor, index, side)}
        data = json.dumps(about).replace("<", "\\u003c")  # no text can end the script element
        page = files("tokenreduce.draw").joinpath("page.html").read_text(encoding="utf-8")
        page = page.replace("<title>tokenreduce</title>", f"<title>{html.escape(title)}</title>")
        file.write(page.replace("/*DATA*/", data).encode())


def _content(
    trace: PromptTrace | ImageTrace, image: Image.Image, processor: Any, index: int, side: int
) -> dict[str, Any]:
    images = images_of(trace, index, tiles_of(image.size, processor))
    longest = max(images, key=lambda own: len(own.stages))
    options: dict[str, Any] = {"index": index, "caption": False, "side": side}
    steps = []
    for step, label in enumerate(step_names(longest)):
        reached = [min(step, len(own.stages)) for own in images]
        tokens = provenance_map(trace, image.size, processor, index, step)
        seats = np.concatenate([own.columns if n == 0 else own.stages[n - 1].seats for own, n in zip(images, reached)])
        picture = draw(trace, image, processor, step=step, **options)
        found: dict[str, Any] = {
            "label": label,
            "text": tokens.text,
            "picture": _embedded(picture),
            "key": [(text, _css(fill), _css(edge)) for text, fill, edge in swatches_of(tokens, image.size)],
            "owner": tokens.owner.tolist(),
            "kept": tokens.kept,
            "seats": seats.tolist(),
            "role": tokens.role.tolist(),
            "roles": list(tokens.names),
            "score": None,
            "heat": None,
        }
        if tokens.score is not None and np.isfinite(tokens.score).any():
            low, high = scale_of(tokens.score)
            ends = colors_of(np.array([low, high]), low, high).astype(int).tolist()
            found["score"] = [float(f"{s:.6g}") if math.isfinite(s) else None for s in tokens.score]
            found["heat"] = _embedded(draw(trace, image, processor, step=step, heat=True, **options))
            found["bar"] = [(f"score {v:.3g}", _css(c), _css(c)) for v, c in zip((low, high), ends)]
        steps.append(found)
    whole = provenance_map(trace, image.size, processor, index, 0)
    places = Canvas(image, side).places(whole).tolist()
    return {
        "width": picture.width,
        "height": picture.height,
        "steps": steps,
        "places": places,
        "names": _names(images),
    }


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
            if len(views) > 1 or len(images) > 1:
                where = f"view {view + tile}, {where}"
            names.append(where)
    return names


def _embedded(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


def _css(color: Color | Sequence[int] | None) -> str:
    return (
        "repeating-linear-gradient(135deg, #e1e1e1 0 4px, #787878 4px 6px)" if color is None else f"rgb{tuple(color)}"
    )
