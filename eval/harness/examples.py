"""A few questions looked at more closely while a model answers them: pictures of what it kept, prompts to time later."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import tokenreduce as tr
from tokenreduce.adapters.upstream.lmms_eval import task_of
from tokenreduce.draw import draw
from tokenreduce.pictures import as_rgb

from .first_token import prompt_of

COUNT = 3  # questions per task
SIDE = 168  # pixels; two thirds where a question has several images
IMAGES = 3  # images of one question: first, middle, last


class Examples:
    """Draws ``COUNT`` questions spread over each task.

    ``pictures``: doc_id, question, and a JPEG in base64 of the images side by side; of the images themselves where nothing is
    reduced. ``problems``: what could not be drawn, and why; a picture is never a reason to fail. ``prompts``: the inputs of
    these questions' batches, for ``first_token``.
    """

    def __init__(self, requests: Sequence[Any], processor: Any) -> None:
        self.processor = processor
        self.pictures: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.prompts: list[dict[str, Any]] = []
        self.tasks = {r.task_name: t for r in requests if (t := task_of(r)) is not None}
        documents = [(r.task_name, r.doc_id) for r in requests]
        self.wanted: set[tuple[str, int]] = set()
        for task in self.tasks:
            own = sorted({doc_id for name, doc_id in documents if name == task})
            self.wanted |= {(task, own[i * (len(own) - 1) // max(1, COUNT - 1)]) for i in range(COUNT)}

    def observe(self, model: Any, documents: Sequence[tuple[str, int]], arguments: dict[str, Any]) -> None:
        """Called after ``model.generate(**arguments)`` answered ``documents``, one per row of its batch."""
        if not self.wanted.isdisjoint(documents):
            self.prompts.append(prompt_of(model, arguments))
        for row, (task, doc_id) in enumerate(documents):
            if (task, doc_id) not in self.wanted:
                continue
            self.wanted.discard((task, doc_id))
            try:
                document = self.tasks[task].eval_docs[doc_id]
                images = [as_rgb(image) for image in self.tasks[task].doc_to_visual(document)]
                if not images:
                    self.problems.append(f"{task} {doc_id}: it has no picture")
                    continue
                question = str(self.tasks[task].doc_to_text(document))
                jpeg = _jpeg(_side_by_side(model, row, images, self.processor))
                self.pictures.append({"doc_id": doc_id, "question": question, "jpeg": jpeg})
            except Exception as error:
                self.problems.append(f"{task} {doc_id}: {type(error).__name__}: {error}"[:300])


def _side_by_side(model: Any, row: int, images: list[Any], processor: Any) -> Any:
    from PIL import Image

    side = SIDE if len(images) == 1 else SIDE * 2 // 3
    chosen = sorted({0, (len(images) - 1) // 2, len(images) - 1})[:IMAGES]
    if tr.is_wrapped(model):
        traces = [image for image in tr.trace(model).images if image.sample == row]
        if len(traces) != len(images):  # the images of the question are the frames of one video
            pieces = [draw(traces[0], images[i], processor, frame=i, caption=False, side=side) for i in chosen]
        else:
            pieces = [draw(traces[i], images[i], processor, caption=False, side=side) for i in chosen]
    else:
        pieces = []
        for i in chosen:
            small = images[i].copy()
            small.thumbnail((side, side))
            pieces.append(small)
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
