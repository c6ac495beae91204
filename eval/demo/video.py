"""Short synthetic videos for temporal methods: a still camera, sensor noise, and an object that appears on the way.

The demo model was trained on pictures alone, so its full-token accuracy on videos is no reference; what a video asks for can
all be read off its last frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .measure import wilson
from .scene_questions import Question, questions

NOISE = 1.5  # standard deviation of pixel noise per frame
FRAMES = 8


@dataclass(frozen=True, eq=False)
class VideoQuestion:
    """One question about one video: ``frames`` in order, each 168 x 168 RGB; ``still`` is the scene it was made from."""

    frames: tuple[Image.Image, ...]
    question: str
    answer: str
    kind: str
    still: Question


def video_questions(
    videos: int | Iterable[int], frames: int = FRAMES, seed: int = 0, per_video: int = 6
) -> list[VideoQuestion]:
    """Questions about videos made from the pictures of the split "test", in video order; fixed by ``seed`` and index.

    One object is covered by a dull patch until a random frame of the second quarter.
    """
    out: list[VideoQuestion] = []
    made: dict[int, tuple[Image.Image, ...]] = {}
    for still in questions("test", videos, seed, per_video):
        if still.index not in made:
            made[still.index] = _frames(still, frames, seed)
        out.append(VideoQuestion(made[still.index], still.question, still.answer, still.kind, still))
    return out


def _frames(still: Question, frames: int, seed: int) -> tuple[Image.Image, ...]:
    rng = np.random.default_rng([seed, still.index, frames])
    pixels = still.scene.pixels.astype(np.float32)
    late = still.scene.things[int(rng.integers(len(still.scene.things)))]
    appears = int(rng.integers(frames // 4, frames // 2 + 1))
    (x, y), half = late.center, late.size // 2 + 1
    area = np.s_[max(0, y - half) : y + half, max(0, x - half) : x + half]
    pictures = []
    for frame in range(frames):
        canvas = pixels + rng.normal(0, NOISE, pixels.shape)
        if frame < appears:
            canvas[area] = np.median(pixels, axis=(0, 1)) + rng.normal(0, NOISE, canvas[area].shape)
        pictures.append(Image.fromarray(canvas.clip(0, 255).astype(np.uint8)))
    return tuple(pictures)


def video_prompt(question: str, frames: int) -> str:
    """The prompt of the demo model with one placeholder per frame."""
    return "USER: " + "<image>" * frames + f"\n{question} ASSISTANT:"


@dataclass(frozen=True)
class VideoRow:
    """One way of shortening, over all ``questions``; ``interval`` is Wilson's 95 % interval of ``accuracy``."""

    arm: str
    method: str
    accuracy: float
    interval: tuple[float, float]
    tokens_last_layer: int
    tokens_layer_average: float
    questions: int


def arms(keep: float = 0.15) -> dict[str, tuple[Any, bool]]:
    """Ways to shorten a video to ``keep``: method, and whether it is shown the frames together. None: not at all."""
    import tokenreduce as tr

    return {
        "all tokens": (None, False),
        "uniform per frame": (tr.Uniform(keep=keep, positions="renumber"), False),
        "fastervlm per frame": (tr.FasterVLM(keep=keep, positions="renumber"), False),
        "pool over the video": (tr.Pool(keep=keep, positions="renumber"), True),
        "holitom, entry only": (tr.HoliTom(keep=keep, inner_keep=1.0, positions="renumber"), True),
        "holitom": (tr.HoliTom(keep=keep, positions="renumber"), True),
        "holitom, ids kept": (tr.HoliTom(keep=keep, inner_keep=1.0), True),
    }


def answer_videos(
    model: Any,
    processor: Any,
    asked: Sequence[VideoQuestion],
    arm: str,
    method: Any,
    as_video: bool,
    advance: Callable[[], None] = lambda: None,
) -> VideoRow:
    """Ask all questions under ``method``; frames go in as images, which ``as_video`` shows to the method together."""
    import torch

    import tokenreduce as tr

    from . import replies, right

    marks, report, whole = [], None, 0
    with (
        nullcontext() if method is None else tr.wrapped(model, method, images_as_video=as_video),
        torch.inference_mode(),
    ):
        for question in asked:
            frames = len(question.frames)
            text = [video_prompt(question.question, frames)]
            inputs = processor(images=list(question.frames), text=text, return_tensors="pt").to(model.device)
            out = model.generate(**inputs, do_sample=False)
            marks.append(right(replies(processor, out, inputs["input_ids"].shape[1])[0], question.answer))
            whole = int((inputs["input_ids"] == model.config.image_token_id).sum())
            advance()
        if method is not None:
            report = tr.report(model)
    return VideoRow(
        arm,
        repr(method),
        sum(marks) / len(marks),
        wilson(sum(marks), len(marks)),
        whole if report is None else sum(report.tokens_kept[0]),
        float(whole) if report is None else report.equivalent_tokens[0],
        len(marks),
    )
