"""The whole way to the first token with and without reduction: its time, taking turns on the same prompts, and its FLOPs."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

import tokenreduce as tr
from tokenreduce.timing import speed_up, time_prefill
from tokenreduce.unreduced import prefill_flops

from ..recipe import Recipe

ROUNDS = 3


def prompt_of(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What of the arguments of ``generate`` a forward pass over the prompt takes."""
    taken = set(inspect.signature(model.forward).parameters) - {"use_cache", "logits_to_keep"}
    return {name: value for name, value in arguments.items() if name in taken and value is not None}


def first_token(
    model: Any, recipe: Recipe, prompts: Sequence[Mapping[str, Any]], unscaled: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any] | None:
    """Medians in milliseconds and the paired speed-up with its lowest and highest; None for nothing to compare.

    Each prompt: ``ROUNDS`` rounds of both arms in turn, after a round of warm-up, vision tower included. ``unscaled``:
    what ``prompts`` were before their pictures were scaled down. The model comes bare and is left bare.
    """
    if not recipe.methods or not prompts:
        return None

    def reduced() -> Any:
        if not recipe.on_model:
            return nullcontext()
        return tr.wrapped(model, *recipe.on_model, images_as_video=recipe.images_as_video)

    before: list[float] = []
    after: list[float] = []
    arms = {"unreduced": nullcontext, "reduced": reduced}
    for prompt, whole in zip(prompts, unscaled or prompts, strict=True):
        laps = time_prefill(model, prompt, arms, ROUNDS, instead={"unreduced": whole})
        before += [lap.total_s for lap in laps["unreduced"]]
        after += [lap.total_s for lap in laps["reduced"]]
    medians = {"unreduced_ms": statistics.median(before) * 1e3, "reduced_ms": statistics.median(after) * 1e3}
    return {"prompts": len(prompts), "rounds": ROUNDS, **medians, "speedup": vars(speed_up(before, after))}


def whole_prefill(
    model: Any, recipe: Recipe, prompts: Sequence[Mapping[str, Any]], unscaled: Sequence[Mapping[str, Any]] = ()
) -> dict[str, float] | None:
    """Mean FLOPs of encoding and reading a prompt, ``flops`` and ``flops_unreduced``; None without prompts.

    ``tower``, ``projector`` and ``prefill`` of the report: from the shapes of what runs, since a counter of operations does
    not see those of fused kernels. Padding, the head over the vocabulary and the method itself, whose time is measured, are
    left out. ``unscaled`` as in ``first_token``. The model comes bare and is left bare.
    """
    bills = [bill for prompt in prompts for bill in _bills(model, recipe, prompt)]
    if unscaled:
        whole = [bill for prompt in unscaled for bill in _bills(model, recipe, prompt)]
        bills = [(small[0], large[0]) for small, large in zip(bills, whole, strict=True)]
    if not bills:
        return None
    flops, unreduced = zip(*bills)
    return {"flops": statistics.fmean(flops), "flops_unreduced": statistics.fmean(unreduced)}


def _bills(model: Any, recipe: Recipe, prompt: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(reduced, unreduced) FLOPs of a prompt, for each of its samples an equal part."""
    ids, mask = prompt.get("input_ids", prompt.get("inputs_embeds")), prompt.get("attention_mask")
    identity = (tr.Uniform(keep=1.0),)
    with (
        tr.wrapped(model, *(recipe.on_model or identity), images_as_video=recipe.images_as_video),
        torch.inference_mode(),
    ):
        model(**prompt, logits_to_keep=1)
        try:
            stages = tr.report(model).by_stage
        except ValueError:  # text alone
            lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
            return [(flops, flops) for flops in prefill_flops(model, lengths)]
    parts = [stages[name] for name in ("tower", "projector", "prefill") if name in stages]
    whole = sum(part.flops for part in parts) / len(ids), sum(part.flops_unreduced for part in parts) / len(ids)
    return [whole] * len(ids)
