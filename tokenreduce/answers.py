"""What a model answers under some methods, and the trace of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tokenreduce.attachment import report, trace
from tokenreduce.wrapping import wrapped

if TYPE_CHECKING:
    from torch import nn

    from tokenreduce.cost import Report
    from tokenreduce.method import Method
    from tokenreduce.traces import Trace


@dataclass(frozen=True)
class Answer:
    """One run: its trace and report (None: unreduced) and the text of every sample (empty without a processor)."""

    trace: Trace | None
    texts: tuple[str, ...]
    report: Report | None = None


def answer(
    model: nn.Module,
    inputs: Mapping[str, Any],
    methods: Sequence[Method],
    processor: Any = None,
    max_new_tokens: int = 32,
    images_as_video: bool = False,
) -> Answer:
    """Generate greedily under ``methods`` (none: as the model is), and decode with ``processor``."""

    def generate() -> tuple[str, ...]:
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # type: ignore[operator]
        if processor is None:
            return ()
        new = out[:, inputs["input_ids"].shape[1] :]
        return tuple(text.strip() for text in processor.batch_decode(new, skip_special_tokens=True))

    if not methods:
        return Answer(None, generate())
    with wrapped(model, *methods, images_as_video=images_as_video):
        texts = generate()
        return Answer(trace(model), texts, report(model))
