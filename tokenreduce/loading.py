"""What a model is called with, in a quiet process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image


def model_inputs(processor: Any, image: Image.Image, prompt: str, model: Any) -> dict[str, Any]:
    """What the model is called with: by the chat template if there is one, else the image token before the prompt."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        text = f"{getattr(processor, 'image_token', '<image>')}\n{prompt}"
    made = processor(images=[image], text=[text], return_tensors="pt").to(model.device)
    return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in made.items()}


def quiet() -> None:
    """Keep transformers' own progress bars and advice off the screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
