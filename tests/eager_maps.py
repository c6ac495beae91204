"""What eager attention maps say of every module, and what a method is shown: the two sides of the tests of signals."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from unittest import mock

import reduced
import torch

from tokenreduce.eval.tiny_models.llava import best_tiles, without_padding
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.traces import Trace

TOLERANCE = 2e-6  # float32 softmax, two orders of summation
LAYER = 3


def spy(needs):
    """Keeps the first half at decoder layer ``LAYER``, where pictures are seen whole, and notes what it was shown."""

    class Spy(Method, register=False):
        name, title, stages = "spy", "spy", ("llm",)

        def plan(self, facts: ModelFacts):
            return (Step("llm", layer=min(LAYER, facts.shared_from or LAYER), needs=needs),)

        def reduce(self, tokens):
            seen.append(tokens)
            k = tokens.num_tokens // 2
            return Reduction.select(torch.arange(k).expand(len(tokens.features), k), tokens.num_tokens)

    seen: list = []
    return Spy(), seen


def shown(model, inputs, needs) -> tuple[list[dict], Trace]:
    """What was shown of each picture, in the order of the call; and the trace."""
    method, seen = spy(needs)
    _, trace = reduced.forward(model, inputs, method)
    bundles: dict = {}
    for i, image in enumerate(trace.images):
        bundles.setdefault(image.layout, []).append(i)
    found: list = [None] * len(trace.images)
    for tokens, members in zip(seen, bundles.values(), strict=True):
        for row, i in enumerate(members):
            found[i] = {signal: value[row] for signal, value in tokens.signals.items()}
    return found, trace


@torch.no_grad()
def maps(model, inputs, modules) -> list[list[torch.Tensor]]:
    """Per module, the (B, H, N, N) attention of each of its calls, as the eager function of its own file returns it."""
    found: list[list[torch.Tensor]] = [[] for _ in modules]

    def heard(original):
        def eager(module, *args, **kwargs):
            out, weights = original(module, *args, **kwargs)
            for own, wanted in zip(found, modules):
                if module is wanted:
                    own.append(weights)
            return out, weights

        return eager

    with ExitStack() as stack:
        for file in {sys.modules[type(module).__module__] for module in modules}:
            # a tower may have a function of its own
            for name in [name for name in vars(file) if name.endswith("eager_attention_forward")]:
                stack.enter_context(mock.patch.object(file, name, heard(getattr(file, name))))
        model(**inputs)
    return found


def anyres(rows: torch.Tensor, size: list[int], s: int) -> torch.Tensor:
    """Values (V, s * s) of a base tile and tiles, as tokens: the base, then what is no padding of all tiles together."""
    tiles = best_tiles(size)
    whole = rows[1:].view(*tiles, s, s).transpose(1, 2).reshape(tiles[0] * s, tiles[1] * s)
    height, width = without_padding(size, *whole.shape)
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    return torch.cat([rows[0], whole[top : top + height, left : left + width].flatten()])
