"""Decoder layers that read merged tokens at all places they stand for, and compute what is not attention once per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.decoder_layers import KEY
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.unmerged_rows import UnmergedRows
from tokenreduce.adapters.upstream.decoder import (
    RECURRENT,
    attention_of,
    layer_type,
    output_projection,
    token_wise_modules,
)
from tokenreduce.adapters.upstream.decoder_shape import multiply_adds
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.pipeline import Pipeline


class UnmergingLayer:
    """The hooks of one decoder layer.

    Queries, keys and values are computed of rows and stand at every place, where they are rotated and attend; what attention
    gives the places of a row is averaged in front of its output projection. As all of its columns stay equal, the MLP runs on
    rows as well.
    """

    now = PerThread[UnmergedRows | None](nothing)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.attention = attention_of(layer)
        self.output = output_projection(self.attention)
        self.once = token_wise_modules(layer, self.attention)

    def spared(self, decoder: Any) -> int:
        """Multiply-adds that every column saves which is a copy of another."""
        return sum(multiply_adds(decoder, module) for module in (*self.once, self.output))

    def attach(self, handles: list[Any]) -> None:
        handles.append(self.layer.register_forward_pre_hook(self.enter, with_kwargs=True))
        handles.append(self.layer.register_forward_hook(self.leave, always_call=True))
        for module, taken in [(module, UnmergedRows.narrow) for module in self.once] + [(self.output, averaged)]:
            hook = ComputedOnce(self, taken)
            handles.append(module.register_forward_pre_hook(hook.enter))
            handles.append(module.register_forward_hook(hook.leave, always_call=True))

    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reduced: DecoderPass | None = kwargs.get(KEY)
        self.now = None if reduced is None else reduced.unmerged

    def leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.now = None


def unmerging_layers(family: Family, pipeline: Pipeline) -> list[UnmergingLayer]:
    """The hooks of all decoder layers with attention.

    Errors: ``ValueError`` where others keep a state.
    """
    config, depth = family.decoder.config, len(family.decoder.layers)
    if any(layer_type(config, i) in RECURRENT for i in range(depth)):
        raise ValueError(
            f"method={pipeline.methods[0].name!r} unmerges its tokens in the attention of the language model, but layers of this "
            f"{family.model.config.model_type} model keep a state, in which a token comes out different at each of its places; "
            "leave the unmerging out"
        )
    return [UnmergingLayer(family.decoder.layers[i]) for i in family.attending]


class ComputedOnce:
    """The hooks of a module that works token by token: it is given rows, ``taken`` from columns, and its output is spread."""

    narrowed = PerThread[UnmergedRows | None](nothing)

    def __init__(self, layer: UnmergingLayer, taken: Callable[[UnmergedRows, Tensor], Tensor]) -> None:
        self.layer = layer
        self.taken = taken

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        rows = self.narrowed = self.layer.now
        if rows is None or not args or args[0].shape[:2] != rows.row.shape:
            self.narrowed = None
            return None
        return (self.taken(rows, args[0]), *args[1:])

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        rows, self.narrowed = self.narrowed, None
        if rows is None:
            return None
        made, *more = output if isinstance(output, tuple) else (output,)
        wide = rows.spread(made.view(*rows.first.shape, -1))
        return (wide, *more) if isinstance(output, tuple) else wide


def averaged(rows: UnmergedRows, x: Tensor) -> Tensor:
    """The mean of ``x`` (B, L, D) over the columns of each row, (B, W, D)."""
    return rows.mean(x)
