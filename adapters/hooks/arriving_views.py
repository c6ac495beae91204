"""What of a pass arrives in a tower, and how much of it is left: rows of its batch, or segments of its sequence."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.packed_units import Segment
from tokenreduce.adapters.hooks.ragged_rows import View
from tokenreduce.adapters.visual_inputs import TowerCall
from tokenreduce.layout import Layout
from tokenreduce.pipeline import Pipeline


def views_of(family: Family, call: TowerCall, pipeline: Pipeline, batch: int) -> list[View]:
    """The ``batch`` rows of a pass: which of their units become tokens, and how many of these are left; none: not known."""
    views: list[View] = []
    for picture in family.arriving(call):
        if picture.pooled and family.unit == 1:  # refused once the model has pooled them
            views += [View(None, (None,) * len(pipeline.methods))] * picture.rows
            continue
        own = picture.layout.views or [replace(picture.layout, frames=1)] * picture.rows
        shares = pipeline.view_shares([view.num_tokens for view in own])
        views += [View(view.cells, share) for view, share in zip(own, shares)]
    return views if len(views) == batch else []


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
