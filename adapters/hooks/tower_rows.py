"""Rows that a tower and its projector pass on, for methods that look at, or project, more than the tokens' features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.encoding_cost import EncodingCost
from tokenreduce.flops import products
from tokenreduce.per_thread import PerThread
from tokenreduce.projection import Projector, TwoLayers
from tokenreduce.signals import Keys, ProjectorInput, Signal, TowerPrefix
from tokenreduce.signals import TowerRows as RowsOfBlock

Heard = Callable[[int, Signal, Tensor], None]


class TowerRows:
    """Hooks that tell rows, and the way of other rows through the projector."""

    projecting = PerThread[bool](bool)  #: whether a method's rows are on that way, which no hook is to note

    def __init__(self, family: Family, wanted: Iterable[Signal]) -> None:
        self.family = family
        self.wanted = list(wanted)

    def attach(self, tower: int, heard: Heard, handles: list[Any]) -> None:
        """Append to ``handles`` what tells ``heard`` the block, the signal and its rows whenever ``tower`` runs."""
        for signal in self.wanted:
            if isinstance(signal, Keys):
                block = self.family.block(self.family.heard_in(signal.block, tower), tower)
                handles.append(block.listen_keys(partial(_keys, heard, signal, block.heads)))
            elif isinstance(signal, (TowerPrefix, RowsOfBlock)):
                layer: nn.Module = self.family.block(signal.block, tower).module
                rows = self.family.facts().tower_prefix if isinstance(signal, TowerPrefix) else None
                handles.append(layer.register_forward_hook(partial(_leaving, heard, signal, rows)))

    def attach_projector(self, heard: Callable[[Tensor], None], handles: list[Any]) -> None:
        """The same for the rows that enter the projector."""
        if ProjectorInput() in self.wanted:
            entered = self.family.projection().entered
            handles.append(entered.register_forward_pre_hook(partial(_entering, heard)))

    def projector(self, cost: EncodingCost) -> Projector:
        """What makes features of such rows; adds to ``cost`` what that takes."""
        way = self.family.projection()
        parameter, each = next(way.within.parameters(), None), 2 * products(way.within)

        def run(rows: Tensor) -> Tensor:
            cost.other["again"] = cost.other.get("again", 0) + each * (rows.numel() // rows.shape[-1])
            self.projecting = True
            try:
                return way.run(_like(parameter, rows)).to(rows.device)
            finally:
                self.projecting = False

        return Projector(run, None if way.layers is None else _two_layers(*way.layers))


def _like(parameter: Tensor | None, rows: Tensor) -> Tensor:
    """``rows`` where the ``parameter`` they meet is, and in its dtype, as far as it tells."""
    if parameter is None or parameter.is_meta or not parameter.is_floating_point():
        return rows
    return rows.to(parameter.device, parameter.dtype)


def _two_layers(first: Any, act: Callable[[Tensor], Tensor], second: Any) -> TwoLayers | None:
    """The weights of two linear layers; None where they are more than that: quantised, adapted, or held elsewhere."""
    if any(type(layer) is not nn.Linear or layer.weight.is_meta for layer in (first, second)):
        return None
    return TwoLayers(first.weight, first.bias, act, second.weight, second.bias)


# Hooks are partials of functions, not closures: a deep copy of the model then speaks to the copy of the listener.


@torch.no_grad()
def _keys(heard: Heard, signal: Keys, heads: int, keys: Tensor) -> None:
    keys = keys.float()
    if signal.heads == "mean":
        keys = keys.unflatten(-1, (heads, -1)).mean(dim=-2)
    heard(signal.block, signal, keys)


def _leaving(
    heard: Heard, signal: TowerPrefix | RowsOfBlock, rows: int | None, module: nn.Module, args: Any, output: Any
) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    heard(signal.block, signal, hidden if rows is None else hidden[:, :rows])


def _entering(heard: Callable[[Tensor], None], module: nn.Module, args: tuple[Any, ...]) -> None:
    heard(args[0])
