"""ZOO-Prune: sensitivity of a projector given by its weights, picks by given sensitivities, or both; views and newlines."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.methods.zoo_prune import select, sensitivity
from tokenreduce.projection import Projector, TwoLayers

NEWLINE = -9999


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    kind = params.one_of("function", ("sensitivity", "full", "select", "frames"), "select")
    if kind == "frames":
        return frames(inputs["features"], inputs["sensitivity"], inputs["frame_labels"], params["keep_per_frame"])
    if kind == "select":
        return picks(inputs["features"], inputs["sensitivity"], params["keep"])
    project = projector(*(inputs[name] for name in ("w1", "b1", "w2", "b2")))
    rows = inputs["tokens"]
    params.agree(directions=len(inputs["directions"]))
    moved = sensitivity(rows[None], inputs["directions"], project, params["h"], params.get("rank"))[0]
    found = {"sensitivity": moved}
    return found if kind == "sensitivity" else found | picks(project(rows), moved, params["keep"])


def projector(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Projector:
    return Projector(lambda x: F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2), TwoLayers(w1, b1, F.gelu, w2, b2))


def picks(features: Tensor, moved: Tensor, keep: int) -> dict[str, Tensor]:
    order = select(features[None], moved[None], keep)[0]
    return {"order": order, "keep": order.sort().values}


def frames(features: Tensor, moved: Tensor, labels: Tensor, keep: int) -> dict[str, Tensor]:
    """Every view by itself, with all newlines. As released, places of newlines lie as many rows ahead as the base view has."""
    views = [(labels == label).nonzero().flatten() for label in labels.unique().tolist() if label != NEWLINE]
    views = [own for own in views if len(own)]
    orders = [own[select(features[own][None], moved[own][None], keep)[0]] for own in views]
    newlines, base = (labels == NEWLINE).nonzero().flatten(), int((labels == 0).sum())
    chosen = torch.cat(orders)
    found = {
        "keep": torch.cat([chosen, newlines]).unique(),
        "keep_reference": torch.cat([chosen, newlines - base]).unique(),
    }
    if len({len(order) for order in orders}) == 1:
        found["order"] = torch.stack(orders)
    return found
