"""One prompt asked of one model, as ``run`` and ``inspect`` do: both loaded, and what the model is called with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenreduce.cli.arguments import asked

if TYPE_CHECKING:
    from PIL import Image

    from tokenreduce.answers import Answer
    from tokenreduce.method import Method


@dataclass(frozen=True)
class Prompt:
    """A model with its processor, and the inputs of one question about one picture."""

    model: Any
    processor: Any
    picture: Image.Image
    question: str
    inputs: dict[str, Any]

    def answer(self, methods: list[Method], max_new_tokens: int) -> Answer:
        """What the model answers under ``methods``, none for the model as it is."""
        from tokenreduce.answers import answer

        return answer(self.model, self.inputs, methods, self.processor, max_new_tokens)


def one_picture(model: str, image: Path | None, prompt: str | None) -> tuple[Image.Image, str]:
    """The picture and the question; only the demo model brings its own."""
    if model != "demo" and (image is None or prompt is None):
        missing = "--image" if image is None else "--prompt"
        raise ValueError(
            f"{missing} is missing; only --model demo brings its own. For example {missing} "
            + ("photo.jpg" if image is None else '"What is in the picture?"')
        )
    return asked(image, prompt)


def load_prompt(model: str, picture: Image.Image, question: str, dtype: str, device: str, attention: str) -> Prompt:
    """Load ``model`` and make its inputs. Errors: those of ``cli.loading.load``."""
    from tokenreduce.cli.loading import load
    from tokenreduce.loading import model_inputs, quiet

    quiet()
    network, processor = load(model, dtype, device, attention)
    return Prompt(network, processor, picture, question, model_inputs(processor, picture, question, network))
