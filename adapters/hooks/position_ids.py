"""Position ids of a shortened sequence, layer by layer: the caller's own, or counted along what is left."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.adapters.hooks.sequence_packing import LayerPackings
from tokenreduce.adapters.upstream.decoder import layer_type, rotary_embedding
from tokenreduce.kernels.rows import take_rows

Table = Tensor | tuple[Tensor, ...]  #: cosines and sines, or both as one complex tensor


class PositionIds:
    """The ids of one decoder pass.

    Attributes:
        given: (1 | B, W) or, for rotary ids of several axes, (A, 1 | B, W) the caller's ids per slot of layer 0.
        begin: (B, 1) the caller's id of the first real column of this chunk, kept or not; set with ``given``.
        end: (B,) the caller's id of the last real column of this chunk, kept or not; set with ``given``.
        shift: per layer, (B,) long to subtract from the caller's ids of later chunks; None where ids are kept.
    """

    def __init__(self, decoder: Any, packings: LayerPackings, shift: list[Tensor | None]) -> None:
        self.decoder = decoder
        self.packings = packings
        self.shift = shift
        self.given: Tensor | None = None
        self.begin: Tensor | None = None
        self.end: Tensor | None = None
        self._before = list(shift)  # what earlier chunks left
        self._slots: dict[int, Tensor] = {}  # by first layer, slot of layer 0 whose position each slot carries
        self._ids: dict[int, Tensor] = {}  # by first layer, renumbered ids
        self._counted: dict[int, int] = {}  # by first layer, the layer behind whose cache these go on
        self._tables: dict[Any, Table] = {}

    @property
    def flat(self) -> Tensor:
        """(1 | B, W) the caller's ids, along the first axis where there are several."""
        assert self.given is not None
        return self.given[0] if self.given.ndim == 3 else self.given

    def follow(self, layer: int, start: int, at: Tensor, *, renumbered: bool) -> None:
        """From ``layer`` on, slot i carries what slot ``at[:, i]`` carried since ``start``."""
        self._slots[layer] = self._slots[start].gather(1, at) if start in self._slots else at
        if start in self._ids:
            self._ids[layer] = self._ids[start].gather(1, at)
            self._counted[layer] = self._counted[start]
        if renumbered:
            self.renumber(layer, self._slots[layer])

    def renumber(self, layer: int, slots: Tensor) -> None:
        """From ``layer`` on, count positions along the shortened sequence, on from where earlier chunks ended in each layer.

        ``slots`` (B, W) finds the caller's ids of layer 0.
        """
        assert self.begin is not None and self.end is not None  # noqa: PT018
        ids = self.flat.expand(slots.shape[0], -1).gather(1, slots)
        before, valid = self._before[layer], self.packings.at(layer).valid
        first = self.begin if before is None else self.begin - before[:, None]
        real = ids.new_ones(ids.shape) if valid is None else valid.long()
        new = (first + real.cumsum(dim=1) - 1).clamp_min(0)
        shift = self.end - new[:, -1]
        self._ids[layer], self._counted[layer] = new, layer
        later: list[Tensor | None] = []
        for own in range(layer, len(self.shift)):
            again = own > layer and self._before[own] is self._before[own - 1]
            later.append(later[-1] if again else shift + self._apart(own, layer))
        self.shift = [*self.shift[:layer], *later]

    def _apart(self, layer: int, other: int) -> Tensor | int:
        """(B,) by how much earlier chunks left less of themselves in ``layer`` than in the ``other``."""
        if self._before[layer] is self._before[other]:
            return 0
        less, more = (0 if left is None else left for left in (self._before[layer], self._before[other]))
        return less - more

    def continue_at(self, layer: int, shift: Tensor) -> None:
        """Let the ids of later chunks be the caller's minus ``shift`` (B,) in ``layer``."""
        self.shift = [*self.shift[:layer], shift, *self.shift[layer + 1 :]]

    def ids(self, layer: int) -> Tensor | None:
        """(B, W) position ids of ``layer`` where they are not the caller's; None where they are."""
        start, shift = self.packings.start(layer), self.shift[layer]
        if start in self._ids:
            apart = self._apart(layer, self._counted[start])
            return self._ids[start] - (apart[:, None] if isinstance(apart, Tensor) else apart)
        return None if shift is None else (self.flat - shift[:, None]).clamp_min(0)

    def own(self, layer: int) -> Tensor:
        """(B, W) or (A, B, W) position ids of the slots of ``layer``, whoever gave them."""
        assert self.given is not None
        ids, slots = self.ids(layer), self._slots.get(self.packings.start(layer))
        batch = len(self.packings.at(layer).alive)
        if ids is not None:
            return ids.expand(batch, -1) if self.given.ndim < 3 else ids.expand(len(self.given), batch, -1)
        if slots is None:
            return self.given.expand(*self.given.shape[:-2], batch, -1)
        return self.given.expand(*self.given.shape[:-2], batch, -1).gather(
            -1, slots.expand(*self.given.shape[:-2], -1, -1)
        )

    def first(self, layer: int) -> Tensor | None:
        """(B, 1) position id of the first real token of this chunk in ``layer``; None for rotary ids of several axes."""
        assert self.given is not None
        if self.given.ndim == 3:
            return None
        own = self.ids(layer)
        packing = self.packings.by_first[0] if own is None else self.packings.at(layer)
        ids = (self.flat if own is None else own).expand(len(packing.alive), -1)
        return ids[:, :1] if packing.valid is None else ids.gather(1, packing.valid.long().argmax(dim=1, keepdim=True))

    def carried(self, layer: int, rows: Tensor) -> Tensor:
        """``rows`` (B, W, ...), one for each slot of layer 0, of the slots of ``layer``; anything else as it is."""
        slots = self._slots.get(self.packings.start(layer))
        if slots is None or rows.shape[:2] != (len(slots), self.packings.by_first[0].width):
            return rows
        return take_rows(rows, slots)

    def embeddings(self, layer: int, table: Table, hidden: Tensor) -> Table:
        """The rows of the rotary ``table`` of layer 0 for ``layer``, or a table of its own where ids are renumbered."""
        start, shift = self.packings.start(layer), self.shift[layer]
        if shift is not self.shift[0]:
            kind = layer_type(self.decoder.config, layer)
            key: Any = ("rotary", start, id(shift), kind)
            if key not in self._tables:
                self._tables[key] = self._rotary(layer, kind, hidden)
            return self._tables[key]
        if start not in self._slots:
            return table
        axes = table if isinstance(table, tuple) else (table,)
        key = ("rows", id(axes[0]), start)
        if key not in self._tables:
            slots = self._slots[start].to(axes[0].device)
            rows = tuple(take_rows(axis, slots) for axis in axes)
            self._tables[key] = rows if isinstance(table, tuple) else rows[0]
        return self._tables[key]

    def _rotary(self, layer: int, kind: str, hidden: Tensor) -> Table:
        ids = self.ids(layer)
        assert ids is not None, "a shift gives ids of their own"
        assert self.given is not None
        if self.given.ndim == 3:
            ids = ids.expand(self.given.shape[0], -1, -1)
        return rotary_embedding(self.decoder, hidden, ids, kind)
