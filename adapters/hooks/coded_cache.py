"""A layer of a KV cache that holds most of its tokens in few bits, and the latest as they came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenreduce.adapters.upstream.cache import DynamicLayer
from tokenreduce.cache_codec import Codec, Coded

DUMP = -1  # the column of what is nobody's


@dataclass(frozen=True)
class Part:
    """Numbers of few bits, and the cached ``columns`` (B, n) int whose they are; ``DUMP``: they are nobody's."""

    columns: Tensor
    coded: Coded

    def rows(self, pick: Callable[[Tensor], Tensor]) -> Part:
        return Part(pick(self.columns), self.coded.rows(pick))

    def write(self, out: Tensor) -> None:
        """Fill in the own columns of ``out`` (B, P + 1, H, d); the last column takes what is nobody's."""
        at = self.columns.long()
        rows = torch.arange(len(at), device=at.device)[:, None]
        out[rows, at] = self.coded.numbers().transpose(1, 2).to(out.dtype)

    def tensors(self) -> list[Tensor]:
        return [self.columns, *self.coded.tensors.values()]


@dataclass(frozen=True)
class Choice:
    """Which of the columns that a layer holds exactly are to be coded.

    Attributes:
        columns: (B, n) int, those of each row in order, ``DUMP`` beyond; ``valid``, (B, n) bool, which there are, None: all.
        values: the same of values, in parts, with whether these are protected.
        start: first column that stays exact in some row; ``until``, column behind the last one that is coded in some row.
        due: columns at which enough will have been written for some row to be coded again; None: never.
    """

    columns: Tensor
    valid: Tensor | None
    values: list[tuple[Tensor, Tensor | None, bool]]
    start: int
    until: int
    due: int | None


class CodedLayer(DynamicLayer):
    """Reads as if it held all keys and values.

    Attributes:
        keys, values: (B, H, W, d), as they came, of the columns from ``start`` on.
        key_parts, value_parts: what is coded; of columns from ``start`` on it stands in front of what ``keys`` holds.
        until: column behind the last one that is coded in some row, so that nothing before it can be cropped.
        due: columns at which to look for more to code; None: never.
        coded: (B,) bool, rows of which anything is coded; None: all.
    """

    keys: Any
    values: Any

    def __init__(self, exact: DynamicLayer, codec: Codec) -> None:
        super().__init__()
        assert exact.keys is not None and exact.values is not None, "the layer has just run"  # noqa: PT018
        self.keys, self.values = exact.keys, exact.values
        self.dtype, self.device = exact.keys.dtype, exact.keys.device
        self.is_initialized = True
        self.codec = codec
        self.start = self.until = 0
        self.due: int | None = None
        self.key_parts: list[Part] = []
        self.value_parts: list[Part] = []
        self.coded: Tensor | None = None

    def code(self, choice: Choice) -> None:
        """Hold what is chosen in few bits from now on."""
        for given, parts, chosen in (
            (self.keys, self.key_parts, [(choice.columns, choice.valid, False)]),
            (self.values, self.value_parts, choice.values),
        ):
            for columns, valid, protected in chosen:
                at = (columns.long() - self.start).clamp_min(0)[:, None, :, None]
                x = given.gather(2, at.expand(-1, given.shape[1], -1, given.shape[3]))
                coded = self.codec.keys(x, valid) if given is self.keys else self.codec.values(x, valid, protected)
                parts.append(Part(columns, coded))
        left = choice.start - self.start
        self.keys, self.values = self.keys[:, :, left:].clone(), self.values[:, :, left:].clone()
        self.start, self.until, self.due = choice.start, choice.until, choice.due

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        return self._whole(self.keys, self.key_parts), self._whole(self.values, self.value_parts)

    def _whole(self, exact: Tensor, parts: list[Part]) -> Tensor:
        batch, heads, width, d = exact.shape
        out = exact.new_zeros(batch, self.start + width + 1, heads, d)
        out[:, self.start : -1] = exact.transpose(1, 2)
        for part in parts:
            part.write(out)
        return out[:, :-1].transpose(1, 2)

    def get_seq_length(self) -> int:
        return self.start + self.keys.shape[2] if self.is_initialized else 0

    def coded_columns(self) -> Tensor:
        """(B, P) bool, which columns are coded."""
        found = torch.zeros(len(self.keys), self.get_seq_length() + 1, dtype=torch.bool, device=self.keys.device)
        for part in self.key_parts:
            found.scatter_(1, torch.where(part.columns < 0, found.shape[1] - 1, part.columns.long()), True)
        return found[:, :-1]

    def keep_columns(self, index: Tensor) -> None:
        """Keep the columns ``index`` (B, P), all of those that are coded among them."""
        at = (index[:, self.start :] - self.start)[:, None, :, None]
        self.keys = self.keys.gather(2, at.expand(-1, self.keys.shape[1], -1, self.keys.shape[3]))
        self.values = self.values.gather(2, at.expand(-1, self.values.shape[1], -1, self.values.shape[3]))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the latest columns: so many as a number below 0 says, or, as older transformers say it, all from that one on."""
        length = self.get_seq_length()
        left = length + tokens_to_remove if tokens_to_remove <= 0 else min(tokens_to_remove, length)
        if left < self.until:
            raise ValueError(
                f"crop to {left} columns of a cache of {length}, of which those before {self.until} are held in few bits, in "
                "groups; allowed: to keep at least these. Crop less, or begin anew with the shorter prompt"
            )
        self.keys, self.values = self.keys[:, :, : left - self.start], self.values[:, :, : left - self.start]

    def reset(self) -> None:
        super().reset()
        self.keys = self.values = None
        self.is_initialized, self.coded = False, None
        self.key_parts, self.value_parts, self.start, self.until, self.due = [], [], 0, 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rows(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def _rows(self, pick: Callable[[Tensor], Tensor]) -> None:
        self.keys, self.values = pick(self.keys), pick(self.values)
        self.key_parts = [part.rows(pick) for part in self.key_parts]
        self.value_parts = [part.rows(pick) for part in self.value_parts]
        self.coded = None if self.coded is None else pick(self.coded)

    def coded_tensors(self) -> list[Tensor]:
        """What is held besides ``keys`` and ``values``."""
        return [x for part in self.key_parts + self.value_parts for x in part.tensors()]


def choose(
    layer: CodedLayer, real: Tensor | None, rows: Tensor | None, protected: Tensor | None, least: int
) -> Choice | None:
    """What ``layer`` is to code of each row that has ``least`` exact tokens or more: all whole groups of them; None: nothing.

    Args:
        real: (B, P) bool of the real columns; ``protected``, the same of those whose values are to lose less; None: all, none.
        rows: (B,) bool of the rows that are coded; None: all.
    """
    group, residual = layer.codec.group, layer.codec.residual
    length, (batch, device) = layer.get_seq_length(), (len(layer.keys), layer.keys.device)
    if real is None and rows is None and layer.until == layer.start:
        exact = length - layer.start
        n = exact // group * group if exact >= least else 0
        columns = torch.arange(layer.start, layer.start + n, device=device).expand(batch, n)
        valid, start, until, most = None, layer.start + n, layer.start + n, exact - n
    else:
        exact_here = ~layer.coded_columns()
        if real is not None:
            exact_here &= real[:, :length]  # a cropped cache is shorter than what was noted
        mine = exact_here if rows is None else exact_here & rows[:, None]
        count = mine.sum(dim=1, keepdim=True)
        take = torch.where(count >= least, count // group * group, 0)
        chosen = mine & (mine.cumsum(dim=1) <= take)
        place = torch.arange(length, device=device)
        first = torch.where(exact_here & ~chosen, place, length).amin()
        last = torch.where(chosen, place + 1, 0).amax()
        n, start, until, most = torch.stack([take.amax(), first, last, (count - take).amax()]).tolist()
        until = max(until, layer.until)
        columns, valid = _in_front(chosen, n)
        columns = columns.masked_fill(~valid, DUMP)
    due = None if residual is None else length + residual - most
    if not n:
        layer.due = due
        return None
    values = [(columns, valid, False)] if protected is None else _parted(columns, valid, protected, group)
    values = [(index.int(), held, special) for index, held, special in values]
    return Choice(columns.int(), valid, values, start, until, due)


def _in_front(chosen: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(B, n) places that are ``chosen`` (B, P) bool, in order, and which of these there are."""
    order = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :n]
    return order, chosen.gather(1, order)


def _parted(
    columns: Tensor, valid: Tensor | None, protected: Tensor, group: int
) -> list[tuple[Tensor, Tensor | None, bool]]:
    """``columns`` in those that are ``protected`` and the others, each filled up to whole groups."""
    there = torch.ones_like(columns, dtype=torch.bool) if valid is None else valid
    special = protected.gather(1, columns.clamp_min(0)) & there
    sides = [there & ~special, special]
    widths = torch.stack([side.sum(dim=1).amax() for side in sides]).tolist()
    found: list[tuple[Tensor, Tensor | None, bool]] = []
    for side, width, is_protected in zip(sides, widths, (False, True)):
        n = -(-width // group) * group
        if n:
            wide = pad(side, (0, max(n - side.shape[1], 0)))
            index, held = _in_front(wide, n)
            own = columns.gather(1, index.clamp_max(columns.shape[1] - 1)).masked_fill(~held, DUMP)
            found.append((own, held, is_protected))
    return found
