"""From what was asked on the command line to a file of measurements and a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..results import surroundings
from . import models, operations, towers
from .shapes import SHAPES

Found = tuple[dict[str, Any], list[dict[str, Any]], list[str]]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how to measure; ``advance`` is told what is measured next."""

    device: torch.device
    dtype: torch.dtype
    rounds: int
    advance: Callable[[str], None] = lambda what: None

    def record(self, what: str, title: str, **content: Any) -> dict[str, Any]:
        facts = surroundings(self.device)
        return {
            "what": what,
            "title": title,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rounds": self.rounds,
            "clock": "CPU time of the process" if facts["threads"] == 1 and self.device.type == "cpu" else "wall time",
            "environment": facts,
            **content,
        }


def operations_table(place: Place, only: Sequence[str] | None, *, smallest: bool = False) -> Found:
    """Every operation, or those of ``only``, at all sizes that the device takes or at the smallest."""
    found = operations.measure(
        operations.chosen(only), place.device, place.dtype, place.rounds, place.advance, smallest=smallest
    )
    title = "Operations against the same mathematics written plainly"
    return place.record("ops", title, **found), operations.table(found["rows"]), []


def models_table(
    place: Place,
    shape: str,
    names: Sequence[str] | None,
    keep: float | int | None,
    batches: Sequence[int],
    layers: int | None,
    tower_layers: int | None,
    attention: str,
) -> Found:
    """Methods on one shape.

    Errors: ``ValueError`` for an unknown shape, a method that cannot be attached, a class that is not there.
    """
    if shape not in SHAPES:
        raise ValueError(f"--shape={shape!r}; allowed: {', '.join(SHAPES)}")
    chosen = SHAPES[shape]
    if keep is not None:
        chosen = dataclasses.replace(chosen, keep=keep)
    depth, tower_depth = models.layers_for(chosen, place.device, layers, tower_layers)
    model = chosen.build(depth, tower_depth, place.device, place.dtype, attention)
    found, left_out = models.methods_for(model, chosen, names)
    rows = []
    for batch in batches:
        inputs = chosen.inputs(place.device, place.dtype, batch)
        rows += models.measure(model, inputs, found, chosen.keep, chosen.depth, place.rounds, place.advance)
    title = (
        f"{chosen.title}: {depth} of {chosen.depth} decoder layers, {tower_depth} of {chosen.tower_depth} tower layers"
    )
    content = place.record(
        "models", title, shape=shape, keep=chosen.keep, attention=attention, layers=depth, tower_layers=tower_depth,
        published_layers=chosen.depth, published_tower_layers=chosen.tower_depth, left_out=left_out, rows=rows,
    )  # fmt: skip
    return content, models.table(content), [f"left out: {name}: {why}" for name, why in left_out.items()]


def towers_table(place: Place, tower: str, batches: Sequence[int], layers: int | None) -> Found:
    """ToMe in one tower."""
    made = towers.build(tower, layers, place.device, place.dtype)
    rows = towers.measure(made, tower, batches, place.rounds, place.advance)
    return place.record("towers", "ToMe in timm", rows=rows), towers.table(rows), []
