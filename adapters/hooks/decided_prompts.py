"""A prompt that ``generate`` passes again, grown, because it uses no cache: what was decided for it stays decided."""

from __future__ import annotations

from typing import Any

import torch

from tokenreduce.adapters.hooks.call_scope import Decided, Scope
from tokenreduce.reduction import Reduction


def recalled(scope: Scope | None, ids: Any) -> dict[Any, list[Reduction]]:
    """Decisions made for the prompt that the columns ``ids`` (B, L) begin with; empty for none."""
    if scope is None or scope.decided is None or ids is None:
        return {}
    known = scope.decided.input_ids
    again = ids.shape[1] > known.shape[1] and torch.equal(ids[:, : known.shape[1]], known)
    return scope.decided.decisions if again else {}


def remember(scope: Scope | None, ids: Any, decisions: dict[Any, list[Reduction]]) -> None:
    """Note the ``decisions`` made for the columns ``ids`` (B, L) of the first call of ``generate``."""
    if scope is not None and scope.generates and scope.decided is None and ids is not None:
        scope.decided = Decided(ids if scope.prompt is None else ids[:, : scope.prompt], decisions)
