"""Methods that note what they are shown of the text, for tests of what the text is."""

from __future__ import annotations

import torch

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction

LAYER = 3


def reader(stage, *needs):
    """A method that keeps the first half of what it is shown, at the projector or at decoder layer ``LAYER``, and notes it."""

    class Reader(Method, register=False):
        name, title, stages, sees = "reader", "reader", (stage,), "image"

        def plan(self, facts: ModelFacts):
            return (Step(stage, layer=LAYER if stage == "llm" else None, needs=needs),)

        def reduce(self, tokens):
            seen.append(tokens)
            k = tokens.num_tokens // 2
            return Reduction.select(torch.arange(k).expand(len(tokens.features), k), tokens.num_tokens)

    seen: list = []
    return Reader(), seen
