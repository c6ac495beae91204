"""What a block is handed beside its rows, with an entry for each of them: masks and rotary tables follow the rows."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.upstream.attention import is_borders, is_longest
from tokenreduce.adapters.upstream.decoder import ROTARY

TABLES = (ROTARY, "rope")  # rotary, of transformers and of timm
MASKS = ("attention_mask", "attn_mask")


class RowArguments:
    """The arguments of one block. ``by_head``: whether a rotary table (H, N, C) is of each head, or else of each image."""

    def __init__(self, block: nn.Module, by_head: bool) -> None:
        self.names = tuple(inspect.signature(block.forward).parameters)[1:]  # behind the rows
        self.by_head = by_head

    def borders(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The borders of segments among ``args`` (behind the rows) and ``kwargs``; None where there are none."""
        given = {**dict(zip(self.names, args)), **kwargs}
        return next((value for name, value in given.items() if is_borders(name)), None)

    def refuse_joined(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise where frames go on as one sequence, and ``args`` (behind the rows) or ``kwargs`` tell of the rows of one."""
        given = {**dict(zip(self.names, args)), **kwargs}
        told = [name for name in (*TABLES, *MASKS) if given.get(name) is not None]
        if told:
            raise ValueError(
                f"frames go on as one sequence, but a block of this tower is given {' and '.join(told)} with an entry for each "
                "row of a frame; allowed: towers whose positions are in the rows, such as CLIP, SigLIP, DINOv2 and plain ViT"
            )

    def following(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: TowerState,
        prefix: int,
        borders: Tensor | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``args`` (behind the rows) and ``kwargs`` for the rows that ``state`` has left, ``prefix`` in front of the patches.

        ``borders`` (S + 1,): of the segments of these rows, where the tower packs.
        """
        rows = state.rows
        args = tuple(self._follow(name, value, state, rows, prefix, borders) for name, value in zip(self.names, args))
        return args, {name: self._follow(name, value, state, rows, prefix, borders) for name, value in kwargs.items()}

    def _follow(
        self, name: str, value: Any, state: TowerState, rows: Tensor, prefix: int, borders: Tensor | None
    ) -> Any:
        if value is None:
            return None
        if name in TABLES:
            tables = (value,) if isinstance(value, Tensor) else value
            if borders is None:
                patches = (rows[:, prefix:] - prefix).clamp_min(0)  # absent rows sit anywhere
                found = [rotary_rows(table, patches, self.by_head) for table in tables]
            else:
                found = [table.index_select(-2, rows[0]) for table in tables]
            return found[0] if isinstance(value, Tensor) else tuple(found)
        if borders is not None and is_borders(name):
            return borders
        if borders is not None and is_longest(name):
            longest = borders.diff().max()
            return longest.to(value) if isinstance(value, Tensor) else int(longest)
        if name not in MASKS:
            return value
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} of a vision block is a {type(value).__name__}, whose rows cannot be merged; load the model with "
                "attn_implementation='sdpa'"
            )
        if name == MASKS[0] and value.ndim == 2:  # of each image, as kernels without a table take it
            return value.gather(1, rows)
        full = state.units.count(state.assign.shape[1])
        return mask_rows(value, rows) if value.shape[-1] == full else value


def borders_of_units(window: Tensor, windows: int, patches: int, like: Tensor) -> Tensor:
    """(S + 1,) borders, of the dtype of ``like``, between the rows of units (U,) sorted by their ``window`` below ``windows``.

    Windows that lost all of their units are none any more.
    """
    counts = torch.zeros(windows, dtype=torch.long, device=window.device)
    counts = counts.scatter_add_(0, window, torch.full_like(window, patches))
    borders = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).unique_consecutive()
    return borders.to(like.dtype)


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
