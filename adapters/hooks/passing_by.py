"""Around a decoder layer: tokens that pass by it are absent from it and from its cache, and there again behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.sequence_packing import scatter
from tokenreduce.groups import ImageGroup
from tokenreduce.kernels.rows import take_rows
from tokenreduce.pipeline import Pipeline, acts
from tokenreduce.reduction import Reduction


@dataclass(frozen=True)
class PassingBy:
    """What is needed behind a layer that was given a part of the rows of ``hidden`` (B, W, D), which entered.

    Attributes:
        slot: (B, W) long, the row of the layer in which each was; ``inside``, (B, W) bool, whether it was in one.
        weight: (B, W) float, how often what the layer adds to a row counts; ``weighted``, (B, W) bool, to which that matters.
            None: once, to all.
    """

    hidden: Tensor
    slot: Tensor
    inside: Tensor
    weight: Tensor | None
    weighted: Tensor | None

    def joined(self, output: Tensor) -> Tensor:
        """(B, W, D) the rows of the layer's ``output`` in their places, among those that passed by."""
        made = take_rows(output, self.slot)
        if self.weight is not None and self.weighted is not None:
            scaled = self.hidden + self.weight[..., None].to(made.dtype) * (made - self.hidden)
            made = torch.where(self.weighted[..., None], scaled, made)
        return torch.where(self.inside[..., None], made, self.hidden)


def joins_again(pipeline: Pipeline, layer: int) -> bool:
    """Whether tokens that a method leaves out of decoder ``layer`` are there again behind it."""
    return any(step.when == "layer" for _, step in pipeline.at("llm", layer))


def check_passing(family: Family, pipeline: Pipeline) -> None:
    """Raise where tokens would pass by a layer that has no attention, or keeps a state."""
    for layer in pipeline.layers("llm"):
        if joins_again(pipeline, layer) and layer not in family.attending:
            raise ValueError(
                f"method={pipeline.at('llm', layer)[0][0].name!r} lets tokens pass by decoder layer {layer}, which in this "
                f"{family.model.config.model_type} model has no attention of its own, but a state or an MLP alone; allowed: "
                f"layers among {[i for i in family.attending if i]}"
            )


def taken_in(reduced: DecoderPass, layer: int, hidden: Tensor) -> tuple[Tensor, PassingBy | None]:
    """The rows of ``hidden`` (B, W, D) that decoder ``layer`` works on, and what puts them back; None: it works on all."""
    packings = reduced.packings
    whole, again, before = packings.behind(layer), layer in packings.alone, reduced.groups
    shown = [group.showing(hidden, whole.slot) for group in before]
    groups, changed = reduced.run("llm", layer, shown)
    if not changed:
        return hidden, None
    if any(group.moved or group.renumbered for group in groups) or len(groups) != len(before):
        raise ValueError(
            f"method={reduced.pipeline.at('llm', layer)[0][0].name!r} merges, renumbers or keeps unlike counts of one layout "
            f"around decoder layer {layer}; allowed: a selection of one count, as Reduction.top gives it"
        )
    with reduced.pipeline.stopwatch(hidden.device):
        packing = packings.by_first[layer] if again else packings.repack(layer, before, groups)
        slots = whole.slot.gather(1, packing.order)
        if not again:
            packings.alone.add(layer)
            reduced.positions.follow(layer, packings.start_behind(layer), slots, renumbered=False)
            reduced.groups = [_passed(old, new) for old, new in zip(before, groups, strict=True)]
        given = weights(reduced, layer, before, whole.slot, hidden)
        at, inside = packing.slot.gather(1, whole.order), packing.alive.gather(1, whole.order)
        return take_rows(hidden, slots), PassingBy(hidden, at, inside, *given)


def _passed(old: ImageGroup, new: ImageGroup) -> ImageGroup:
    """``old``, whose tokens are all there again behind the layer that ``new`` entered, as the history says."""
    inside = new.history[len(old.history) :]
    layer = None if not inside else (inside[-1].layer or 0) + 1
    back = [replace(p, layer=layer, assign=old.assign, seats=old.seats, source=old.source, score=None) for p in inside]
    return replace(old, notes=new.notes, history=[*old.history, *inside, *back])


def weights(
    reduced: DecoderPass, layer: int, groups: Sequence[ImageGroup], slot: Tensor, hidden: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """``weight`` and ``weighted`` of ``PassingBy``, as was decided for the images ``groups``."""
    method = reduced.pipeline.at("llm", layer)[0][0]
    plans: list[Reduction] = reduced.decided("llm", layer) or []
    acted = [group for group in groups if acts(method, group)]
    given = [(group, plan.weight) for group, plan in zip(acted, plans, strict=True) if plan.weight is not None]
    if not given:
        return None, None
    weight = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
    marked = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    for group, own in given:
        at = slot[group.samples[:, None], group.seats]
        weight = scatter(weight, at, group.samples, own.float())
        marked = scatter(marked, at, group.samples, torch.ones_like(at, dtype=torch.bool))
    return weight, marked
