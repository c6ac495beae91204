"""What of a pass arrives in a tower, and how much of it is left: rows of its batch, or segments of its sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.packed_units import Segment
from tokenreduce.adapters.hooks.ragged_rows import View
from tokenreduce.adapters.visual_inputs import TowerCall
from tokenreduce.layout import Layout
from tokenreduce.pipeline import Pipeline


def views_of(family: Family, call: TowerCall, pipeline: Pipeline, batch: int, input_ids: Tensor | None) -> list[View]:
    """The ``batch`` rows of a pass: which of their units become tokens, and how many of these are left; none: not known.

    ``input_ids`` (B, L): the prompt, where it is known.
    """
    views: list[View] = []
    pictures = family.arriving(call)
    if family.tiled:
        sizes = [picture.layout.num_tokens for picture in pictures]
        for tiles in tiles_of_images(family, sizes, input_ids):
            views += [View(None, share) for share in pipeline.view_shares(tiles)]
        return views
    for picture in pictures:
        if picture.pooled and family.unit == 1:  # refused once the model has pooled them
            views += [View(None, (None,) * len(pipeline.methods))] * picture.rows
            continue
        own = picture.layout.views or [replace(picture.layout, frames=1)] * picture.rows
        shares = pipeline.view_shares([view.num_tokens for view in own])
        views += [View(view.cells, share) for view, share in zip(own, shares)]
    return views if len(views) == batch else []


def tiles_of_images(family: Family, sizes: list[int], input_ids: Tensor | None) -> list[list[int]]:
    """``sizes``, the tokens of every tile of a pass, by image: tiles whose placeholders follow one another are one.

    Errors: ``ValueError`` where no prompt tells which are.
    """
    runs: list[int] = []
    if input_ids is not None:
        visual, _ = family.placeholders(input_ids, None)
        for row in visual.tolist():
            runs += [len(list(run)) for seen, run in groupby(row) if seen]
    images: list[list[int]] = []
    left = list(sizes)
    for run in runs:
        images.append([])
        while left and sum(images[-1]) < run:
            images[-1].append(left.pop(0))
    if left or [sum(tiles) for tiles in images] != runs:
        raise ValueError(
            f"{len(sizes)} tiles are encoded, and only the prompt tells which of them are one image, whose budget they share "
            "inside the tower; pass pixel_values together with input_ids to the wrapped model itself, or merge behind the tower "
            "with at='projector'"
        )
    return images


def segments_of(family: Family, call: TowerCall, pipeline: Pipeline) -> list[Segment]:
    """The same of a tower that packs: its segments, the frames of each picture."""
    found: list[Segment] = []
    for picture in family.arriving(call):
        height, width, frames = picture.layout.height, picture.layout.width, picture.layout.frames
        order = family.unit_places(Layout(height, width)).argsort()
        cells = None if torch.equal(order, torch.arange(len(order))) else tuple(order.tolist())
        shares = pipeline.view_shares([height * width] * frames)
        found += [Segment(Layout(height, width, cells=cells), share) for share in shares]
    return found


def each_an_image(batch: int) -> Sequence[View]:
    """The views of a pass whose ``batch`` rows are images of their own."""
    return ()


def whole_images(layouts: list[Layout]) -> None:
    """Which patches enter a tower of whole images: all."""
