"""A small LLaVA model with its procedural data: tells good token reduction from bad without a download.

>>> from tokenreduce.eval import demo
>>> model, processor = demo.load()
>>> asked = demo.questions("test", images=2)
>>> inputs = processor(images=[q.image for q in asked], text=[demo.prompt(q.question) for q in asked],
...                    return_tensors="pt", padding=True)
>>> replies = demo.replies(processor, model.generate(**inputs), inputs["input_ids"].shape[1])
>>> demo.accuracy(replies, asked)["all"] > 0.9
True
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .model import PROMPT
from .scene_questions import KINDS, Question, questions
from .scenes import CLASSES, COLORS, Scene

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = [
    "CLASSES", "COLORS", "KINDS", "WEIGHTS", "Question", "Scene",
    "accuracy", "check_weights", "load", "prompt", "questions", "replies", "right",
]  # fmt: skip

WEIGHTS = Path(__file__).parent / "weights"


def check_weights() -> None:
    """Raise ``FileNotFoundError``, saying what is missing, when the demo model is not installed."""
    if not (WEIGHTS / "config.json").is_file():
        raise FileNotFoundError(
            f"the demo model's weights are missing ({WEIGHTS.name}/config.json beside the demo package); reinstall "
            "tokenreduce, or train them with python -m tokenreduce.eval.demo.train"
        )


def load(dtype: torch.dtype | None = None) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The shipped model in evaluation mode and its processor; ``dtype`` is float32 by default. No network."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    check_weights()
    model = LlavaForConditionalGeneration.from_pretrained(
        WEIGHTS, dtype=torch.float32 if dtype is None else dtype, local_files_only=True
    )
    return model.eval(), AutoProcessor.from_pretrained(WEIGHTS, local_files_only=True)


def prompt(question: str) -> str:
    """The text the model was trained on: one picture, then the question."""
    return PROMPT.format(question=question)


def replies(processor: LlavaProcessor, generated: torch.Tensor, prompt_tokens: int) -> list[str]:
    """Decode ``generated`` (B, L) ids without their first ``prompt_tokens`` columns."""
    return processor.batch_decode(generated[:, prompt_tokens:], skip_special_tokens=True)


def right(reply: str, answer: str) -> bool:
    """Exact match after lower-casing and joining words by single blanks; a final full stop is ignored."""
    return " ".join(reply.lower().rstrip(" .").split()) == answer


def accuracy(given: Sequence[str], asked: Sequence[Question]) -> dict[str, float]:
    """Share of right replies under "all" and per question kind present."""
    if len(given) != len(asked):
        raise ValueError(f"one reply per question is needed, got {len(given)} replies to {len(asked)} questions")
    marks: dict[str, list[bool]] = {"all": []}
    for reply, question in zip(given, asked, strict=True):
        mark = right(reply, question.answer)
        marks["all"].append(mark)
        marks.setdefault(question.kind, []).append(mark)
    return {kind: sum(values) / max(1, len(values)) for kind, values in marks.items()}
