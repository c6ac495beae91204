"""A few questions looked at more closely while a model answers them: pictures of what it kept, prompts to time later."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenreduce as tr
from tokenreduce.adapters.upstream.lmms_eval import task_of
from tokenreduce.draw import draw, key_entries, swatches, tiles_of
from tokenreduce.pictures import as_rgb, open_video

from .first_token import prompt_of

COUNT = 3  # questions per task
SIDE = 168  # pixels; two thirds where a question has several images
IMAGES = 3  # images of one question: first, middle, last


class Examples:
    """Draws ``COUNT`` questions spread over each task.

    ``pictures``: task, doc_id, question, a JPEG in base64 of the images side by side, or of frames of a video, and the ``key`` to
    it; of the images themselves where nothing is reduced. ``problems``: what could not be drawn, and why; a picture is never a
    reason to fail. ``prompts``: the inputs of these questions' batches, for ``first_token``; ``unscaled``: the same before their
    pictures were scaled down, where they are.
    """

    def __init__(self, requests: Sequence[Any], processor: Any) -> None:
        self.processor = processor
        self.pictures: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.prompts: list[dict[str, Any]] = []
        self.unscaled: list[dict[str, Any]] = []
        self.tasks = {r.task_name: t for r in requests if (t := task_of(r)) is not None}
        documents = [(r.task_name, r.doc_id) for r in requests]
        self.wanted: set[tuple[str, int]] = set()
        for task in self.tasks:
            own = sorted({doc_id for name, doc_id in documents if name == task})
            self.wanted |= {(task, own[i * (len(own) - 1) // max(1, COUNT - 1)]) for i in range(COUNT)}

    @property
    def problems(self) -> list[str]:
        unknown = "lmms-eval's model does not tell which question it answered"
        return [*self.failed, *(f"{task} {doc_id}: {unknown}" for task, doc_id in sorted(self.wanted))]

    def observe(
        self, model: Any, documents: Sequence[tuple[str, int]], arguments: dict[str, Any], whole: Any = None
    ) -> None:
        """Called after ``model.generate(**arguments)`` answered ``documents``, one per row of its batch.

        ``whole``: the inputs before pictures were scaled down, where they were.
        """
        if not self.wanted.isdisjoint(documents):
            self.prompts.append(prompt_of(model, arguments))
            if whole is not None:
                self.unscaled.append(prompt_of(model, arguments | dict(whole.to(model.device, model.dtype))))
        for row, (task, doc_id) in enumerate(documents):
            if (task, doc_id) not in self.wanted:
                continue
            self.wanted.discard((task, doc_id))
            try:
                document = self.tasks[task].eval_docs[doc_id]
                visuals = self.tasks[task].doc_to_visual(document)
                if not visuals:
                    self.failed.append(f"{task} {doc_id}: it has no picture")
                    continue
                question = str(self.tasks[task].doc_to_text(document))
                drawn, key = _drawn(model, row, visuals, self.processor)
                about = {"task": task, "doc_id": doc_id, "question": question}
                self.pictures.append({**about, "jpeg": _jpeg(_side_by_side(drawn)), "key": key})
            except Exception as error:
                self.failed.append(f"{task} {doc_id}: {type(error).__name__}: {error}"[:300])


def _drawn(model: Any, row: int, visuals: Sequence[Any], processor: Any) -> tuple[list[Any], list[Any]]:
    """Pictures of some of the images of a question, and the key to them."""
    wrapped = tr.is_wrapped(model)
    trace = tr.trace(model) if wrapped else None
    places = (
        [(0, i, 0) for v in visuals for i in _images(v, IMAGES)]
        if trace is None
        else _places(trace, row, visuals, processor)
    )
    side = SIDE if len(places) == 1 else SIDE * 2 // 3
    chosen = [places[i] for i in sorted({0, (len(places) - 1) // 2, len(places) - 1})[:IMAGES]]
    if trace is None:
        pieces = [image.copy() for _, image, _ in chosen]
        for piece in pieces:
            piece.thumbnail((side, side))
        return pieces, []
    keys = [key_entries(swatches(trace, image.size, processor, index=at)) for at, image, _ in chosen]
    pieces = [
        draw(trace, image, processor, index=at, frame=frame, caption=False, side=side) for at, image, frame in chosen
    ]
    return pieces, list(dict.fromkeys(entry for key in keys for entry in key))


def _places(trace: Any, row: int, visuals: Sequence[Any], processor: Any) -> list[tuple[int, Any, int]]:
    """(image of the trace, picture, frame) for every picture, and every frame of a video, of a sample ``row``."""
    own = [number for number, image in enumerate(trace.images) if image.sample == row]
    if not own:
        raise ValueError("nothing of the question's pictures was seen")
    at, found = own[0], []
    if len(own) == 1 and len(visuals) > 1:  # the images are the frames of one video, several to a token where they are
        frames, images = trace.images[at].layout.frames, [image for v in visuals for image in _images(v, 1)]
        return [(at, image, i * frames // len(images)) for i, image in enumerate(images)]
    for visual in visuals:
        frames = trace.images[at].layout.frames
        apart = trace.images[at].layout.medium == "image"  # where a model takes frames as images of their own
        images = _images(visual, len(own) if apart else frames)
        found += [(at + i, image, 0) if apart else (at, image, i) for i, image in enumerate(images)]
        at += sum(tiles_of(image.size, processor) for image in images) if apart else 1
    return found


def _images(visual: Any, frames: int) -> list[Any]:
    """The picture, upright, or ``frames`` of a video, of a file too."""
    return open_video(visual, frames) if isinstance(visual, (str, Path)) else [as_rgb(visual)]


def _side_by_side(pieces: Sequence[Any]) -> Any:
    from PIL import Image

    gap = 4
    joined = Image.new("RGB", (sum(p.width + gap for p in pieces) - gap, max(p.height for p in pieces)), "white")
    left = 0
    for piece in pieces:
        joined.paste(piece, (left, 0))
        left += piece.width + gap
    return joined


def _jpeg(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
