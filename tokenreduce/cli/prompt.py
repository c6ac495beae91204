"""One prompt asked of one model, as ``run`` and ``inspect`` do: both loaded, and what the model is called with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from tokenreduce.answers import Answer
    from tokenreduce.method import Method
    from tokenreduce.pictures import Video

DEMO_QUESTION = "how many objects are there?"


@dataclass(frozen=True)
class Prompt:
    """A model with its processor, and the inputs of one question about pictures and videos.

    ``images_as_video``: whether the frames of a video are images to this model.
    """

    model: Any
    processor: Any
    pictures: Sequence[Image.Image | Video]
    question: str
    inputs: dict[str, Any]
    images_as_video: bool

    def answer(self, methods: list[Method], max_new_tokens: int) -> Answer:
        """What the model answers under ``methods``, none for the model as it is."""
        from tokenreduce.answers import answer

        return answer(self.model, self.inputs, methods, self.processor, max_new_tokens, self.images_as_video)


def given_prompt(
    model: str, images: list[Path] | None, videos: list[Path] | None, frames: int, prompt: str | None
) -> tuple[list[Image.Image | Video], str]:
    """Pictures, videos and the question; only the demo model brings its own."""
    if model != "demo" and (not (images or videos) or prompt is None):
        missing = "--prompt" if images or videos else "--image"
        raise ValueError(
            f"{missing} is missing; only --model demo brings its own. For example {missing} "
            + ('"What is in the picture?"' if images or videos else "photo.jpg")
        )
    if images or videos:
        from tokenreduce.pictures import open_pictures, open_video

        pictures: list[Image.Image | Video] = [one for path in images or () for one in open_pictures(path)]
        return [*pictures, *(open_video(path, frames) for path in videos or ())], prompt or DEMO_QUESTION
    from tokenreduce.eval.demo.scene_questions import questions

    question = next(q for q in questions("test", 50) if q.kind == "color" and len(q.scene.things) >= 4)
    return [question.image], prompt or question.question


def load_prompt(
    model: str, pictures: Sequence[Image.Image | Video], question: str, dtype: str, device: str, attention: str
) -> Prompt:
    """Load ``model`` and make its inputs.

    Errors: those of ``cli.loading.load``, and ``ValueError`` for a video beside anything else where frames are images.
    """
    from tokenreduce.adapters.upstream.processors import takes_videos
    from tokenreduce.cli.loading import load
    from tokenreduce.loading import model_inputs, quiet

    quiet()
    network, processor = load(model, dtype, device, attention)
    filmed = [entry for entry in pictures if isinstance(entry, list)]
    as_images = bool(filmed) and not takes_videos(processor)
    if as_images and len(pictures) > 1:
        raise ValueError(
            f"--video beside {len(pictures) - 1} other picture(s) or video(s), but {model} takes a video as images, which "
            "then are all frames of one video; allowed: a single --video, or --image only"
        )
    inputs = model_inputs(processor, pictures, question, network)
    return Prompt(network, processor, pictures, question, inputs, as_images)
