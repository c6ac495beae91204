"""How many visual tokens a processor makes of a picture, asked of the processor itself."""

from __future__ import annotations

from typing import Any

from PIL import Image

from tokenreduce.adapters.upstream.processors import placeholders
from tokenreduce.loading import prompt_text

Size = tuple[int, int]  # width, height in pixels

SMALL, LARGE = 16, 1024  # longer sides of pictures that a processor of dynamic resolution makes unlike numbers of
SHAPES = (1, 2)  # their width, of their height


class PictureTokens:
    """Counts for one processor, each size once: do not change its settings in between.

    ``settings``: what it is called with beside text and pictures, such as ``max_patches``.
    """

    def __init__(self, processor: Any, **settings: Any) -> None:
        if not callable(processor) or not hasattr(processor, "tokenizer"):
            raise TypeError(
                f"processor is a {type(processor).__name__}; allowed: what AutoProcessor.from_pretrained gives for the model, "
                "which makes tokens of text and pictures"
            )
        self.processor, self._settings = processor, settings
        self._text = prompt_text(processor, ["image"], "")
        self._counts: dict[Size, int] = {}

    def count(self, size: Size) -> int:
        """Visual tokens of a picture of ``size`` that is alone in its prompt, newline tokens included where a family has
        them. Errors: those of the processor."""
        if size not in self._counts:
            given = {"text": [self._text], "images": [Image.new("RGB", size, "gray")], "return_tensors": "pt"}
            made = self.processor(**given, **self._settings)
            self._counts[size] = placeholders(self.processor, made["input_ids"][0].tolist())
        return self._counts[size]

    def fixed(self) -> int | None:
        """The number of every picture, where its size makes no difference; None at dynamic resolution."""
        pairs = [tuple(self.count((side, side // shape)) for side in (SMALL, LARGE)) for shape in SHAPES]
        return max(map(max, pairs)) if all(small == large for small, large in pairs) else None
