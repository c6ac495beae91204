"""Whether an encoder that is wrapped by itself is the tower of a larger model, which would change without being asked."""

from __future__ import annotations

import gc
from typing import Any

from torch import nn


def refuse_tower_of_a_larger_model(tower: nn.Module) -> None:
    """Raise where ``tower``, as it is given to be wrapped, is part of a model of transformers.

    A head for dense prediction is no such model: it sits on its ``backbone``, which is wrapped in its place.
    """
    if holder_of(tower) is None:
        return
    gc.collect()  # what nobody holds any more holds nothing
    module: nn.Module | None = tower
    while module is not None:
        of_transformers = hasattr(module, "get_decoder") and hasattr(module, "get_input_embeddings")
        if of_transformers and module is not tower and getattr(module, "backbone", None) is not tower:
            raise ValueError(
                f"this {type(tower).__name__} is the vision tower of a {type(module).__name__}, which would change with it; wrap "
                "that model itself, or a copy of its tower (copy.deepcopy)"
            )
        module = holder_of(module)


def holder_of(module: nn.Module) -> nn.Module | None:
    """A module that has ``module`` among its children; None where there is none. Modules know their children only."""
    for children in gc.get_referrers(module):
        if not isinstance(children, dict) or not any(child is module for child in children.values()):
            continue
        for owner in gc.get_referrers(children):
            holders: list[Any] = [owner]
            if isinstance(owner, dict) and owner.get("_modules") is children:
                holders = gc.get_referrers(owner)
            for holder in holders:
                if isinstance(holder, nn.Module) and holder._modules is children:
                    return holder
    return None
