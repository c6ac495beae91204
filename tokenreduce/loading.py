"""What a model is called with, in a quiet process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tokenreduce.adapters.upstream.processors import takes_videos

if TYPE_CHECKING:
    from tokenreduce.pictures import Video


def model_inputs(
    processor: Any, pictures: Image.Image | Sequence[Image.Image | Video], prompt: str, model: Any
) -> dict[str, Any]:
    """What the model is called with: by the chat template if there is one, else placeholders before the prompt.

    Args:
        processor: of the model. Where it takes no videos, their frames are given as images; wrap the model with
            ``images_as_video=True`` then.
        pictures: a picture, or what the prompt holds, in order: pictures, and lists of the frames of a video.
        prompt: the question.
        model: gives device and dtype.
    """
    given = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    if not takes_videos(processor):
        given = [one for entry in given for one in ([entry] if isinstance(entry, Image.Image) else entry)]
    text = prompt_text(processor, ["image" if isinstance(e, Image.Image) else "video" for e in given], prompt)
    images = [entry for entry in given if isinstance(entry, Image.Image)]
    videos = [np.stack([np.asarray(frame) for frame in e]) for e in given if not isinstance(e, Image.Image)]
    media: dict[str, Any] = {"images": images} if images else {}
    if videos:
        media |= {"videos": videos, "do_sample_frames": False}
    made = processor(text=[text], return_tensors="pt", **media).to(model.device)
    return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in made.items()}


def picture_batch(processor: Any, pictures: Sequence[Image.Image], model: Any) -> dict[str, Any]:
    """What ``model`` is called with for a batch of ``pictures``, a prompt of its own for each; an encoder takes no prompts."""
    more: dict[str, Any] = {}
    if hasattr(processor, "tokenizer"):
        text = prompt_text(processor, ["image"], "Describe the picture.")
        more = {"text": [text] * len(pictures), "padding": True}
    made = processor(images=[[one] for one in pictures] if more else list(pictures), return_tensors="pt", **more)
    made = made.to(model.device)
    return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in made.items()}


def prompt_text(processor: Any, kinds: Sequence[str], prompt: str) -> str:
    """A turn that asks ``prompt`` about media of ``kinds``, ``image`` or ``video``, in order."""
    if getattr(processor, "chat_template", None):
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": prompt}]
        return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    marks = {kind: getattr(processor, f"{kind}_token", f"<{kind}>") for kind in ("image", "video")}
    return "".join(f"{marks[kind]}\n" for kind in kinds) + prompt


def quiet() -> None:
    """Keep transformers' own progress bars and advice off the screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
