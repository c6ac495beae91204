"""In front of the blocks of a tower that packs pictures into one sequence: the rows that enter, and all that goes with them.

Every argument of a block with an entry per row follows, borders of segments are counted anew, and what joins the patches of a
unit in a token gives full width again: places of units that never ran repeat the one before, and leave at the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.encoding_cost import EncodingCost
from tokenreduce.adapters.upstream.attention import is_borders, is_longest
from tokenreduce.per_thread import PerThread, nothing


@dataclass
class EnteringRows:
    """The rows of one pass.

    Attributes:
        entering: (P,) bool of the rows of the whole sequence.
        rows: (P',) long, those that enter, ascending.
        token: (U,) long, of each unit of the whole sequence, the row of its token behind what joins patches.
        first: the block that they enter; the ones before run all.
        cost: what is noted of the pass.
        known: arguments that came before, by identity, and what became of them.
    """

    entering: Tensor
    rows: Tensor
    token: Tensor
    first: int
    cost: EncodingCost | None
    known: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, entering: Tensor, patches: int, first: int, cost: EncodingCost | None) -> EnteringRows:
        """Of units of ``patches`` neighbouring rows, which enter together."""
        units = entering.view(-1, patches)[:, 0]
        return cls(entering, entering.nonzero()[:, 0], (units.cumsum(0) - 1).clamp_min(0), first, cost)

    def following(self, name: str, value: Any) -> Any:
        """What becomes of the argument ``name`` of a block, its rows among them."""
        if isinstance(value, (tuple, list)):
            return type(value)(self.following(name, part) for part in value)
        if not isinstance(value, Tensor) or is_longest(name):
            return value
        if id(value) not in self.known:
            self.known[id(value)] = (value, self.made(name, value))
        return self.known[id(value)][1]

    def made(self, name: str, value: Tensor) -> Tensor:
        whole = len(self.entering)
        if is_borders(name):
            before = F.pad(self.entering.cumsum(0), (1, 0)).to(value.dtype)
            return before[value.long()].unique_consecutive()  # a segment of which nothing is left is none
        if value.ndim > 1 and value.shape[-2] == whole:
            value = value.index_select(-2, self.rows)
        if value.ndim > 2 and value.shape[-1] == whole:  # a mask
            value = value.index_select(-1, self.rows)
        return value

    def spread(self, values: Tensor, *, tokens: bool = False) -> Tensor:
        """``values`` (P', ...) of the rows that entered, or (K, ...) of their ``tokens``, at full width.

        Rows that did not enter hold NaN; tokens of such units repeat the one before.
        """
        if tokens:
            return values.index_select(0, self.token)
        wide = values.new_full((len(self.entering), *values.shape[1:]), torch.nan)
        wide[self.rows] = values
        return wide


class PackedEntrance:
    """The hooks of one tower; ``now``: the rows of the pass under way or the last one, None where all entered."""

    now = PerThread[EnteringRows | None](nothing)

    def __init__(self, family: Family, tower: int) -> None:
        self.blocks = list(family.layers(tower))
        self.mergers = family.unit_mergers

    def attach(self, handles: list[Any]) -> None:
        """Append the hooks to ``handles``; they come before all others on the blocks."""
        for index, block in enumerate(self.blocks):
            handles.append(block.register_forward_pre_hook(partial(self.enter, index), with_kwargs=True))
        for merger in self.mergers:
            handles.append(merger.register_forward_hook(self.widen))

    def enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = self.now
        if now is None or index < now.first:
            return None
        borders = next((value for name, value in kwargs.items() if is_borders(name)), None)
        if now.cost is not None:
            now.cost.whole[index] = (1, len(now.entering), borders)
        args = (now.made("", args[0]), *(now.following("", value) for value in args[1:]))
        kwargs = {name: now.following(name, value) for name, value in kwargs.items()}
        borders = next((value for name, value in kwargs.items() if is_borders(name)), None)
        for name, value in kwargs.items():
            if is_longest(name) and value is not None and borders is not None:
                longest = borders.diff().max()
                kwargs[name] = longest if isinstance(value, Tensor) else int(longest)
        return args, kwargs

    def widen(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        now = self.now
        if now is None or len(output) == len(now.token):
            return None
        return now.spread(output, tokens=True)
