"""Which units of the pictures of a pass enter the blocks of a tower at all, and what becomes of the others' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import TowerCall
from tokenreduce.groups import Image, ImageGroup, group_images
from tokenreduce.kernels.fingerprint import combine
from tokenreduce.layout import Layout
from tokenreduce.pipeline import Pipeline
from tokenreduce.projection import Projector
from tokenreduce.provenance import StageTrace
from tokenreduce.reduction import DROPPED, PositionPolicy, Reduction
from tokenreduce.signals import Signal


@dataclass(frozen=True)
class UnitSelection:
    """What enters the blocks of a tower in one pass.

    Attributes:
        pictures: what happened to the tokens of each picture of the pass; None: all enter.
        rows: of each picture, the rows of its tokens, (N, patches of a unit) long, as ``Family.unit_rows``.
    """

    pictures: list[StageTrace | None]
    rows: list[Tensor]

    @cached_property
    def kept(self) -> list[Tensor]:
        """Of each picture, (N,) bool: tokens whose unit enters."""
        return [
            torch.ones(len(rows), dtype=torch.bool, device=rows.device) if passed is None else passed.assign >= 0
            for passed, rows in zip(self.pictures, self.rows)
        ]

    def entering(self, total: int) -> Tensor:
        """(total,) bool: which of the tower's rows enter. Those that belong to no token always do."""
        entering = torch.ones(total, dtype=torch.bool, device=self.rows[0].device)
        for rows, kept in zip(self.rows, self.kept):
            entering[rows[~kept].flatten()] = False
        return entering


class PixelSource:
    """What methods are shown at stage ``pixels`` beside the values: ``prints`` (pictures,) of the pictures of a pass."""

    def __init__(self, prints: Sequence[Tensor]) -> None:
        self.prints = prints

    def look(self, signal: Signal, group: ImageGroup) -> Any:
        return torch.stack([self.prints[i] for i in group.members])

    def projector(self, group: ImageGroup) -> Projector:
        return Projector.none()


@torch.no_grad()
def choose_units(
    family: Family, pipeline: Pipeline, call: TowerCall, pixels: Tensor, prints: Tensor | None
) -> UnitSelection | None:
    """The units of ``pixels`` that the methods of stage ``pixels`` let enter; None: all of them.

    ``prints`` (rows,): fingerprints of what is in each row of the tower, where asked for.
    """
    pictures = family.arriving(call)
    if not pictures:
        return None
    with pipeline.stopwatch(pixels.device):
        values = family.unit_pixels(call, pixels, pictures)
        own = [] if prints is None else prints.split([picture.rows or 1 for picture in pictures])
        whole = [x[0] if len(x) == 1 else combine(x[None])[0] for x in own]
    passed = chosen(
        pipeline, [picture.layout for picture in pictures], values, whole, (family.pixel_mean, family.pixel_std)
    )
    return None if passed is None else UnitSelection(passed, family.unit_rows(call, pictures))


def chosen(
    pipeline: Pipeline,
    layouts: Sequence[Layout],
    values: Sequence[Tensor],
    prints: Sequence[Tensor],
    scale: tuple[Sequence[float], Sequence[float]],
) -> list[StageTrace | None] | None:
    """What the methods of stage ``pixels`` make of pictures; None: everything enters.

    Args:
        layouts: of the tokens of each picture.
        values: (N, D) of each, pixels of its units, moved and divided by the mean and deviation ``scale``.
        prints: of each, a fingerprint, where asked for.
    """
    images = [Image(i, torch.arange(len(x)), layout) for i, (x, layout) in enumerate(zip(values, layouts))]
    groups = group_images(images, values[0].device)
    with pipeline.stopwatch(values[0].device):
        groups = [replace(g, features=_undone(pipeline, [values[i] for i in g.members], scale)) for g in groups]
    groups, _, changed = pipeline.run("pixels", pipeline.enters or None, groups, PixelSource(prints))
    if not changed or all(group.num_tokens == group.columns.shape[1] for group in groups):
        return None
    passed: list[StageTrace | None] = [None] * len(values)
    for group in groups:
        if group.history:
            names = dict.fromkeys(stage.method for stage in group.history)
            last = replace(group.history[-1], method=" + ".join(names))
            for i, member in enumerate(group.members):
                passed[member] = last.each(lambda x, i=i: x[i])  # type: ignore[misc]
    return passed


def _undone(pipeline: Pipeline, values: Sequence[Tensor], scale: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """``values`` (N, D) of B pictures, as the processor made them, between 0 and 1 again: (B, N, D) float32."""
    unit = pipeline.facts.pixel_unit
    assert unit is not None, "the stage is offered"
    given = torch.stack(list(values)).float()
    mean, std = (given.new_tensor(x).view(-1, 1, 1, 1) for x in scale)
    return (given.unflatten(-1, unit) * std + mean).flatten(2)


def without_unseen(
    group: ImageGroup,
    behind: Sequence[Sequence[StageTrace | None]],
    sizes: Sequence[Sequence[int]],
    positions: PositionPolicy,
) -> list[ImageGroup]:
    """``group`` without the tokens whose units did not enter the tower.

    ``behind``: of each image, what happened to the encoded pictures behind it, which have ``sizes`` tokens.
    """
    passed = next((x for own in behind for x in own if x is not None), None)
    if passed is None:
        return [group]
    device = group.seats.device

    def of(name: str, otherwise: Any) -> Tensor | None:
        """(B, N) of all images; ``otherwise`` where nothing is known of a picture."""
        if getattr(passed, name) is None:
            return None
        given = [[None if x is None else getattr(x, name) for x in own] for own in behind]
        return torch.stack(
            [
                torch.cat([torch.full((n,), otherwise) if x is None else x.cpu() for x, n in zip(own, lengths)])
                for own, lengths in zip(given, sizes)
            ]
        ).to(device)

    left = of("assign", 0)
    assert left is not None, "every stage tells that"
    plan = Reduction.where(
        left > DROPPED,
        score=of("score", float("nan")),
        role=of("role", 0),
        role_names=passed.role_names,
        positions=positions,
    )
    return group.apply(plan, "pixels", passed.layer, passed.method)
