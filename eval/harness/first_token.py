"""The whole way to the first token with and without reduction: its time, taking turns on the same prompts, and its FLOPs."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import tokenreduce as tr
from tokenreduce.timing import speed_up, time_prefill

from ..recipe import Recipe

ROUNDS = 3


def prompt_of(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What of the arguments of ``generate`` a forward pass over the prompt takes."""
    taken = set(inspect.signature(model.forward).parameters) - {"use_cache", "logits_to_keep"}
    return {name: value for name, value in arguments.items() if name in taken and value is not None}


def first_token(model: Any, recipe: Recipe, prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Medians in milliseconds and the paired speed-up with its lowest and highest; None for nothing to compare.

    Each prompt: ``ROUNDS`` rounds of both arms in turn, after a round of warm-up, vision tower included. The model comes bare
    and is left bare.
    """
    if not recipe.methods or not prompts:
        return None

    def reduced() -> Any:
        return tr.wrapped(model, *recipe.methods, images_as_video=recipe.images_as_video)

    before: list[float] = []
    after: list[float] = []
    for prompt in prompts:
        laps = time_prefill(model, prompt, {"unreduced": nullcontext, "reduced": reduced}, ROUNDS)
        before += [lap.total_s for lap in laps["unreduced"]]
        after += [lap.total_s for lap in laps["reduced"]]
    medians = {"unreduced_ms": statistics.median(before) * 1e3, "reduced_ms": statistics.median(after) * 1e3}
    return {"prompts": len(prompts), "rounds": ROUNDS, **medians, "speedup": vars(speed_up(before, after))}


def whole_prefill(model: Any, recipe: Recipe, prompts: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Mean FLOPs of a forward pass over a prompt, ``flops`` and ``flops_unreduced``; None without prompts.

    Counted by torch as the operations run: vision tower, projector, decoder, the method itself, and logits of the last
    position. The model comes bare and is left bare.
    """
    if not prompts:
        return None

    def counted() -> float:
        found = []
        for prompt in prompts:
            samples = next((len(prompt[name]) for name in ("input_ids", "inputs_embeds") if name in prompt), 1)
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                model(**prompt, logits_to_keep=1)
            found.append(counter.get_total_flops() / samples)
        return statistics.fmean(found)

    whole = counted()
    if not recipe.methods:
        return {"flops": whole, "flops_unreduced": whole}
    with tr.wrapped(model, *recipe.methods, images_as_video=recipe.images_as_video):
        return {"flops": counted(), "flops_unreduced": whole}
