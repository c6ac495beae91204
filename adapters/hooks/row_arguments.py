"""What a block is handed beside its rows, with an entry for each of them: masks and rotary tables follow the rows."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.upstream.decoder import ROTARY

TABLES = (ROTARY, "rope")  # rotary, of transformers and of timm
MASKS = ("attention_mask", "attn_mask")


class RowArguments:
    """The arguments of one block. ``by_head``: whether a rotary table (H, N, C) is of each head, or else of each image."""

    def __init__(self, block: nn.Module, by_head: bool) -> None:
        self.names = tuple(inspect.signature(block.forward).parameters)[1:]  # behind the rows
        self.by_head = by_head

    def following(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], state: TowerState, prefix: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``args`` (behind the rows) and ``kwargs`` for the rows that ``state`` has left, ``prefix`` in front of the patches."""
        args = tuple(self._follow(name, value, state, prefix) for name, value in zip(self.names, args))
        return args, {name: self._follow(name, value, state, prefix) for name, value in kwargs.items()}

    def _follow(self, name: str, value: Any, state: TowerState, prefix: int) -> Any:
        if value is None:
            return None
        if name in TABLES:
            patches = (state.source[:, prefix:] - prefix).clamp_min(0)  # absent rows sit anywhere
            if isinstance(value, Tensor):
                return rotary_rows(value, patches, self.by_head)
            return tuple(rotary_rows(table, patches, self.by_head) for table in value)
        if name not in MASKS:
            return value
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} of a vision block is a {type(value).__name__}, whose rows cannot be merged; load the model with "
                "attn_implementation='sdpa'"
            )
        if name == MASKS[0] and value.ndim == 2:  # of each image, as kernels without a table take it
            return value.gather(1, state.source)
        return mask_rows(value, state.source) if value.shape[-1] == state.assign.shape[1] else value


def rotary_rows(table: Tensor, patches: Tensor, by_head: bool) -> Tensor:
    """The rotary table (N, C), of each image (B, N, C) or (B, 1, N, C), of each head (H, N, C), or of both (B, H, N, C), for
    ``patches`` (B, K): (B, 1 or H, K, C)."""
    if table.ndim == 2 or (table.ndim == 3 and by_head):
        table = table.unsqueeze(0)
    if table.ndim == 3:
        table = table.unsqueeze(0 if by_head else 1)
    heads, index = table.shape[1], patches[:, None, :, None]
    table = table.expand(len(patches), *table.shape[1:])
    return table.gather(2, index.expand(-1, heads, -1, table.shape[-1]))


def mask_rows(mask: Tensor, source: Tensor) -> Tensor:
    """``mask`` (..., N or 1, N), of every image or one for all, between the rows ``source`` (B, K): (B, 1 or H, K or 1, K)."""
    mask = mask.reshape(*(1,) * (4 - mask.ndim), *mask.shape)
    mask = mask.expand(len(source), *mask.shape[1:])
    mask = mask.gather(3, source[:, None, None].expand(-1, *mask.shape[1:3], -1))
    return (
        mask
        if mask.shape[2] == 1
        else mask.gather(2, source[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    )
