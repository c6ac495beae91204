"""One self-contained page: every stage of a prompt's pictures, with what stands for each token under the pointer."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from tokenreduce.draw.page_data import picture_data
from tokenreduce.draw.prompt import numbered_pictures
from tokenreduce.draw.stages import images_of
from tokenreduce.draw.style import stylesheet
from tokenreduce.files import writing
from tokenreduce.provenance import ImageTrace, PromptTrace


def write_page(
    path: str | Path,
    trace: PromptTrace | ImageTrace,
    pictures: Any,
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
    together, where, in which role, and by which score they were ranked. Several pictures are chosen from a list; a video is
    laid out frame by frame and can be played, over a timeline of its tokens: left, joined to those of which frame, dropped.

    Args:
        path: a name ending in .html.
        trace: of the prompt, or one of its ``images``.
        pictures: the original image, or a list with one entry per picture in the order of the call: an image, or the list of
            frames of a video (of a single video the frames themselves).
        processor, side: see ``draw``; ``index``: which image of the trace a single picture is.
        title: heading.
        facts: lines under the heading, (name, text).
        overwrite: whether a file of that name may be replaced.

    Errors: those of ``draw`` and of ``tokenreduce.files.writing``, and ``ValueError`` for an empty list of pictures.
    """
    with writing(path, (".html", ".htm"), overwrite) as file:
        if isinstance(pictures, Image.Image):
            numbered = [(pictures, index)]
        elif isinstance(trace, ImageTrace):
            numbered = [(pictures, 0)]
        else:
            numbered = numbered_pictures(trace, pictures, processor)
        if not numbered or pictures == []:
            raise ValueError("pictures is empty; give the original image, or a list of them in the order of the call")
        made = [
            picture_data(trace, one, processor, at, side)
            for picture, first in numbered
            for one, at in _frames_apart(trace, picture, first)
        ]
        about = {"title": title, "facts": list(facts), "pictures": made}
        data = json.dumps(about).replace("<", "\\u003c")  # no text can end the script element
        page, player = (
            files("tokenreduce.draw").joinpath(name).read_text(encoding="utf-8")
            for name in ("page.html", "video_player.js")
        )
        page = page.replace("/*STYLE*/", stylesheet()).replace("/*VIDEO*/", player)
        page = page.replace("<title>tokenreduce</title>", f"<title>{html.escape(title)}</title>")
        file.write(page.replace("/*DATA*/", data).encode())


def _frames_apart(trace: PromptTrace | ImageTrace, picture: Any, index: int) -> list[tuple[Any, int]]:
    """``picture`` with its index; the frames of a video that came as images of their own are pictures of their own."""
    if isinstance(picture, Image.Image) or images_of(trace, index)[0].layout.medium == "video":
        return [(picture, index)]
    return [(frame, index + number) for number, frame in enumerate(picture)]
