"""FLOPs of the towers and of the projector: hooks note rows while images are encoded, sums are made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.counted_flops import CountedFlops
from tokenreduce.adapters.upstream.attention import borders_of
from tokenreduce.flops import matrices, products, values_width

#: FLOPs with and without reduction
Flops = tuple[int, int]


@dataclass(frozen=True)
class BlockShape:
    """Multiply-adds of a tower's block: of a row in its attention's matrices and in all others, of a query with a key."""

    attention: int
    others: int
    pair: int

    @classmethod
    def of(cls, block: nn.Module, attention: nn.Module | None) -> BlockShape:
        if attention is None:
            return cls(0, products(block), 0)
        inside = products(attention)
        return cls(inside, products(block) - inside, 2 * values_width(attention))

    @classmethod
    def each(cls, family: Family, tower: int) -> list[BlockShape]:
        """Those of the blocks of a tower of ``family``."""
        attend = family.attending_blocks(tower)
        return [
            cls.of(block, family.tower_attention(i, tower) if i in attend else None)
            for i, block in enumerate(family.layers(tower))
        ]

    def flops(
        self, segments: Iterable[int], after: Iterable[int], around: Iterable[tuple[int, int]] | None = None
    ) -> int:
        """Over ``segments`` of rows that attend within themselves, of which ``after`` are left behind the attention.

        ``around``: where rows merge around it, how many of each are projected, and how many attend.
        """
        segments = list(segments)
        projected, attending = (segments, segments) if around is None else zip(*around)
        squares = sum(n * n for n in attending)
        return 2 * (sum(projected) * self.attention + squares * self.pair + sum(after) * self.others)


@dataclass
class EncodingCost:
    """What was noted of one pass of a tower, and of what came after it.

    Attributes:
        shapes: of the tower's blocks.
        rows: per block, (batch, rows) that entered it, and the borders (S + 1,) of its segments where it packs.
        merged: rows of each image that each block's attention and its other matrices work on, where rows are merged on the
            way; ``given``, per block, the borders there would be without merging, where the tower packs.
        arrived: rows of each image before some of them were left out in front of the first block; None: none were.
        whole: what ``rows`` would be if no unit had been left out before the first block; empty where none was.
        other: FLOPs of the matrices outside blocks, by stage; ``again`` is what a method had projected once more.
        unmerged: of those, what they would be if nothing had merged in front of them.
    """

    shapes: list[BlockShape]
    rows: dict[int, tuple[int, int, Tensor | None]] = field(default_factory=dict)
    merged: list[tuple[list[int], list[int]]] | None = None
    given: list[Tensor] = field(default_factory=list)
    arrived: list[int] | None = None
    whole: dict[int, tuple[int, int, Tensor | None]] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)
    unmerged: dict[str, int] = field(default_factory=dict)

    def flops(self) -> dict[str, Flops]:
        """By stage; reads borders from the device."""
        tower, whole = 0, 0
        for index, (batch, width, borders) in sorted(self.rows.items()):
            segments = segments_of(batch, width, borders)
            if self.merged is None:
                passed = self.shapes[index].flops(segments, segments)
                before = segments_of(*self.whole[index]) if index in self.whole else segments
                tower, whole = tower + passed, whole + self.shapes[index].flops(before, before)
            else:
                before, after = self.merged[index]
                first = self.given[index].diff().tolist() if self.given else self.arrived or self.merged[0][0]
                tower += self.shapes[index].flops(segments if self.given else before, after)
                whole += self.shapes[index].flops(first, first)
        outside, projector, again = (self.other.get(stage, 0) for stage in ("tower", "projector", "again"))
        outside_whole, projector_whole = (self.unmerged.get(stage, 0) for stage in ("tower", "projector"))
        return {
            "tower": (tower + outside, whole + outside_whole),
            "projector": (projector + again, projector_whole),
        }


def segments_of(batch: int, width: int, borders: Tensor | None) -> list[int]:
    """Lengths of the segments of rows that attend within themselves."""
    return [width] * batch if borders is None else borders.diff().tolist()


def total(costs: Iterable[EncodingCost]) -> dict[str, Flops]:
    """The sum of several passes; empty for none."""
    found: dict[str, Flops] = {}
    for cost in costs:
        for stage, (reduced, whole) in cost.flops().items():
            before = found.get(stage, (0, 0))
            found[stage] = (before[0] + reduced, before[1] + whole)
    return found


class EncodingHooks:
    """Notes rows per block of each tower, and FLOPs of every other matrix on the way from pixels to features.

    ``latest`` gives what is noted of the pass under way, None where there is none; ``merged``, how many tokens' units are left
    in it now, and of how many.
    """

    def __init__(
        self, family: Family, latest: Callable[[], EncodingCost | None], merged: Callable[[], tuple[int, int]]
    ) -> None:
        self.family = family
        self.latest = latest
        self.merged = merged
        self.shapes = [BlockShape.each(family, t) for t in range(len(family.towers))]

    def attach(self, handles: list[Any]) -> None:
        """Append the hooks to ``handles``."""
        family, projectors = self.family, self.family.projectors
        inside: set[nn.Module] = set()
        for t, tower in enumerate(family.towers):
            for i, block in enumerate(family.layers(t)):
                handles.append(block.register_forward_pre_hook(partial(self.block, i), with_kwargs=True))
                inside.update(block.modules())
            for projector in projectors:
                inside.update(projector.modules())
            self._outside("tower", tower, inside, handles)
        for projector in projectors:
            self._outside("projector", projector, set(), handles)

    def _outside(self, stage: str, root: nn.Module, inside: set[nn.Module], handles: list[Any]) -> None:
        if root in self.family.opaque:
            CountedFlops(partial(self.add, stage)).attach(root, handles)
            return
        leaves: list[nn.Module] = [module for module, _ in matrices(root)]
        if not leaves:  # a projector that is one bare parameter
            leaves = [m for m in root.modules() if any(p.ndim == 2 for p in m.parameters(recurse=False))]
        pools = [m for m in root.modules() if isinstance(m, nn.MultiheadAttention)]
        covered = {child for pool in pools for child in pool.modules() if child is not pool}
        for module in [*pools, *leaves]:
            if module not in inside and module not in covered:
                handles.append(module.register_forward_hook(partial(self.matrix, stage), with_kwargs=True))

    def block(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cost = self.latest()
        if cost is not None and not torch.compiler.is_compiling():
            hidden = args[0] if args else next(iter(kwargs.values()))
            batch, rows = hidden.shape[:2] if hidden.ndim == 3 else (1, len(hidden))
            cost.rows[index] = (batch, rows, kwargs.get("cu_seqlens", borders_of(kwargs)))

    def matrix(self, stage: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.add(stage, matrix_flops(module, args, kwargs, output))

    def add(self, stage: str, flops: int) -> None:
        cost = self.latest()
        if cost is not None:
            left, all_of_them = self.merged()
            cost.other[stage] = cost.other.get(stage, 0) + flops
            cost.unmerged[stage] = cost.unmerged.get(stage, 0) + flops * all_of_them // left


def matrix_flops(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """FLOPs of one call of a linear layer, a convolution, attention pooling, or a module with a bare matrix."""
    if isinstance(module, nn.MultiheadAttention):
        query, key = (kwargs.get(name, args[i] if len(args) > i else None) for i, name in enumerate(("query", "key")))
        assert query is not None and key is not None, "two arguments of every call"  # noqa: PT018
        width, tokens, keys = module.embed_dim, query.numel(), key.numel()
        return 4 * (tokens + keys) * width + 4 * tokens * key.shape[1 if module.batch_first else 0]
    own = dict(matrices(module)).get(module)
    if args and not args[0].is_floating_point():  # rows that are looked up
        return 0
    if own is None:
        matrix = next(p for p in module.parameters(recurse=False) if p.ndim == 2)
        return 2 * output.numel() * matrix.numel() // output.shape[-1]
    channels = getattr(module, "out_features", None) or getattr(module, "out_channels", 1)
    return 2 * own * (output.numel() // channels)
