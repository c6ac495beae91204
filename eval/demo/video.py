"""Short synthetic videos for temporal methods: a still camera, sensor noise, and an object that appears on the way.

The demo model was trained on pictures alone, so its full-token accuracy on videos is no reference; what a video asks for can
all be read off its last frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .scenes import Question, questions

NOISE = 1.5  # standard deviation of pixel noise per frame


@dataclass(frozen=True, eq=False)
class VideoQuestion:
    """One question about one video: ``frames`` in order, each 168 x 168 RGB; ``still`` is the scene it was made from."""

    frames: tuple[Image.Image, ...]
    question: str
    answer: str
    kind: str
    still: Question


def video_questions(
    videos: int | Iterable[int], frames: int = 8, seed: int = 0, per_video: int = 6
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
