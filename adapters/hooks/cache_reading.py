"""While an answer is written: which of the cached entries of pictures the layers behind a step of stage ``decode`` read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.upstream.cache import DynamicLayer
from tokenreduce.cost import StepsRead
from tokenreduce.groups import ImageGroup
from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import Signal
from tokenreduce.uploading import uploaded


@dataclass(frozen=True)
class PictureEntries:
    """What the cache holds of pictures of one layout, at most one of each decoder row.

    Attributes:
        group: the pictures as the layer of the step holds them, with what the method noted in this answer so far.
        asked: the same as the prompt left it.
        slots: per decoder layer, (M, N) long, cached column of each token, -1 where the layer does not hold it. Layers of
            equal history share one tensor.
        whole: per decoder layer, whether it holds all of them.
    """

    group: ImageGroup
    asked: ImageGroup
    slots: list[Tensor]
    whole: list[bool]

    def anew(self) -> PictureEntries:
        """The same at the beginning of an answer."""
        return replace(self, group=self.asked)

    def picked(self, rows: list[int]) -> PictureEntries | None:
        """The same of a batch whose row i is what row ``rows[i]`` was; None where none of its pictures is left."""
        number = {row: i for i, row in enumerate(self.group.decoder_rows)}
        held = [row for row, old in enumerate(rows) if old in number]
        if not held:
            return None
        at = [number[rows[row]] for row in held]
        pick, once = uploaded(at, self.group.samples.device), dict[int, Tensor]()
        samples = uploaded(held, pick.device)

        def of(group: ImageGroup) -> ImageGroup:
            return replace(group.rows(at), decoder_rows=held, samples=samples)

        slots = [once.setdefault(id(x), x.index_select(0, pick)) for x in self.slots]
        return PictureEntries(of(self.group), of(self.asked), slots, self.whole)


@dataclass(frozen=True)
class CachedPictures:
    """What decoding steps know of the pictures in a cache.

    Attributes:
        entries: the entries that a method chooses from.
        counts: per decoder row and layer, real entries when the answer began, those of text included.
        begun: columns of layer 0 when the answer began; ``length``, now.
        steps: where it is counted what decoding steps read.
    """

    entries: list[PictureEntries]
    counts: list[list[int]]
    begun: int
    length: int
    steps: StepsRead

    def picked(self, rows: list[int]) -> CachedPictures:
        """The same of a batch whose row i is what row ``rows[i]`` was."""
        entries = [picked for held in self.entries if (picked := held.picked(rows)) is not None]
        return replace(self, entries=entries, counts=[self.counts[row] for row in rows])

    def held_at(self, past: list[int], layer: int) -> list[PictureEntries]:
        """The entries, where the cache now holds ``past`` columns per layer.

        Where others wrote into it or cropped it, what was noted of the last step is of another text: the answer begins
        anew, without the pictures that have left.
        """
        if past[0] == self.length:
            return self.entries
        longer = past[0] > self.length
        return [held.anew() for held in self.entries if longer or int(held.slots[layer].max()) < past[layer]]


class StepReading:
    """What the new token of each row, in one decoding step, reads of the pictures behind ``layer``.

    Attributes:
        known: what the cache knew before this step.
        entries: the pictures, after ``choose`` with what the method noted.
        skipped: per picture group, (M, N) bool of the entries that are not read, and how many these are in each row.
        gathered: layers whose attention is handed the keys that are read, and no others.
    """

    def __init__(
        self, pipeline: Pipeline, known: CachedPictures, entries: list[PictureEntries], past: list[int], batch: int
    ) -> None:
        assert pipeline.decodes is not None
        self.method, self.step = pipeline.decodes
        self.number = pipeline.number(self.method)
        self.known, self.entries = known, entries
        self.past, self.batch = past, batch
        self.skipped: list[tuple[Tensor, list[int]]] = []
        self.gathered: set[int] = set()
        self.signal_flops = 0
        self._heard: dict[Signal, tuple[Tensor, int]] = {}
        self._once: dict[Any, Any] = {}

    @property
    def layer(self) -> int:
        assert self.step.layer is not None
        return self.step.layer

    def hear(self, signal: Signal, row: Tensor, layer: int, multiply_adds: int) -> None:
        """Note what the new token of each row attends to in ``layer``, (B, P + 1), and what that cost."""
        self._heard[signal] = (row, layer)
        self.signal_flops += 2 * multiply_adds

    def _look(self, signal: Signal, entries: PictureEntries) -> Tensor:
        row, layer = self._heard[signal]
        slots = entries.slots[layer]
        value = row[entries.group.samples[:, None], slots]
        return value if entries.whole[layer] else value.masked_fill(slots < 0, 0)

    def choose(self) -> None:
        """Ask the method, in front of its layer."""
        after = []
        for entries in self.entries:
            signals = {signal: self._look(signal, entries) for signal in self.step.needs}
            given = {"amount": self.step.amount, "signals": signals}
            plan = self.method.checked(entries.group.tokens(self.number, "decode", self.layer, **given))
            m, n = plan.assign.shape
            left = [plan.num_kept] * m if plan.valid is None else plan.valid.sum(dim=1).tolist()
            self.skipped.append((plan.assign < 0, [n - k for k in left]))
            after.append(replace(entries, group=entries.group.noting(self.number, plan)))
        self.entries = after

    def unread(self, layer: int) -> Tensor | None:
        """(B, P + 1) bool, the columns that the new tokens do not read in ``layer``; None: they read all."""
        if layer < self.layer or not any(sum(counts) for _, counts in self.skipped):
            return None
        key = (self.past[layer], *(id(entries.slots[layer]) for entries in self.entries))
        if key not in self._once:
            total = self.past[layer] + 1
            device = self.skipped[0][0].device
            columns = torch.zeros(
                self.batch, total + 1, dtype=torch.bool, device=device
            )  # the last one: held by nobody
            for entries, (skipped, _) in zip(self.entries, self.skipped, strict=True):
                columns[entries.group.samples[:, None], entries.slots[layer]] = skipped
            self._once[key] = columns[:, :total]
        return self._once[key]

    def counts(self) -> list[int]:
        """Per decoder row, how many entries are not read."""
        counts = [0] * self.batch
        for entries, (_, each) in zip(self.entries, self.skipped, strict=True):
            for row, n in zip(entries.group.decoder_rows, each, strict=True):
                counts[row] += n
        return counts

    def gathers(self, cache: Any, holder: int, layer: int, mask: Any) -> bool:
        """Whether the attention of ``layer`` is to be handed fewer keys; else a mask hides those that are not read."""
        plain = type(cache.layers[holder]) is DynamicLayer and all(entries.whole[layer] for entries in self.entries)
        if plain and (mask is None or isinstance(mask, Tensor)):
            self.gathered.add(layer)
        return layer in self.gathered

    def selection(self, layer: int) -> tuple[Tensor, Tensor | None] | None:
        """(B, R) long, the columns that ``layer`` reads, ascending, filled up by others where rows read fewer, and (B, R)
        bool, which of them count, None: all. None where a mask says so, or all is read.
        """
        unread = self.unread(layer) if layer in self.gathered else None
        if unread is None:
            return None
        key = ("selection", id(unread))
        if key not in self._once:
            counts = self.counts()
            read = unread.shape[1] - min(counts)
            index = unread.to(torch.uint8).argsort(dim=1, stable=True)[:, :read]
            filled = None if min(counts) == max(counts) else ~unread.gather(1, index)
            self._once[key] = (index, filled)
        return self._once[key]

    def record(self, flops: Callable[[list[int]], int]) -> None:
        """Count what this step read; ``flops`` are those of a row's new token, for which layers read so many others."""
        counts, since = self.counts(), self.past[0] - self.known.begun
        held = sum(entries.group.num_tokens * len(entries.group.decoder_rows) for entries in self.entries)
        total = sum(
            flops([n + since - skipped * (layer in self.gathered) for layer, n in enumerate(own)])
            for own, skipped in zip(self.known.counts, counts, strict=True)
        )
        self.known.steps.note(held, held - sum(counts), total, self.signal_flops)
