"""One pass through the decoder: who is alive from which layer on, at which positions, behind which mask."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.cache import DecodeState, keep_columns, physical_length
from tokenreduce.adapters.masks import ends_of, layer_mask
from tokenreduce.adapters.packing import Packing, scatter, write
from tokenreduce.adapters.upstream.cache import Cache
from tokenreduce.groups import ImageGroup
from tokenreduce.kernels.fingerprint import combine
from tokenreduce.kernels.rows import take_rows
from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import Signal
from tokenreduce.tokens import Reduction, Stage, group_mean


class Plan:
    """Everything that the hooks of one decoder pass share; travels with the pass, so that re-runs find it again.

    Attributes:
        packings: by first layer, the packing in force from that layer on; 0 is the decoder's door.
        groups: the images of this chunk as they stand now; empty for decode steps and text.
        visual: (B, L) bool on the CPU, visual columns of this chunk; ``visual_counts`` how many are left, per first layer.
        offset: length of the text before this chunk, as the caller counts it.
        repeat: decoder rows per encoded sample (beams).
        passive: nothing changes in this pass; it is only reported.
        captured: signals heard in decoder layers so far, with the packing they were heard under.
        decisions: the reductions carried out so far; ``recalled``, those of an earlier pass over the same prompt.
    """

    def __init__(
        self,
        decoder: Any,
        pipeline: Pipeline,
        cache: Cache | None,
        packing: Packing,
        past_real: list[Tensor | None],
        shift: list[Tensor | None],
        visual: Tensor,
        offset: int,
    ) -> None:
        self.decoder = decoder
        self.pipeline = pipeline
        self.cache = cache
        self.depth: int = decoder.config.num_hidden_layers
        self.packings = {0: packing}
        self.length_in = list(packing.counts)
        self.groups: list[ImageGroup] = []
        self.visual = visual
        self.visual_counts = {0: visual.sum(dim=1).tolist()}
        self.offset = offset
        self.repeat = 1
        self.passive = False
        self.captured: dict[Signal, tuple[Tensor, Packing]] = {}
        self.tower_values: dict[Signal, list[Tensor]] = {}  # per encoded picture
        self.behind: list[tuple[int, ...]] = []  # encoded pictures behind each image of the call
        self.windowed = True  # whether sliding windows cut such blocks
        self.two_way: Tensor | None = (
            None  # (B, L) long, blocks of columns that attend to each other both ways; -1: none
        )
        self.beside: dict[
            int, Tensor
        ] = {}  # by first layer, (B, W, E) what is added to the hidden states of later layers
        self.positions: Tensor | None = None  # the caller's ids per slot at the door
        self.past_real = past_real
        self.real: list[Tensor | None] = [None] * self.depth
        self.shift = shift
        self.decisions: dict[tuple[Stage, int | None], list[Reduction]] = {}
        self.recalled: dict[tuple[Stage, int | None], list[Reduction]] = {}
        self._past = [int(physical_length(cache, i)) for i in range(self.depth)]
        self._entered: dict[int, list[ImageGroup]] = {}  # the images as they came to each llm step
        self._slots: dict[int, Tensor] = {}  # by first layer, slot at the door whose position each slot carries
        self._ids: dict[int, Tensor] = {}  # by first layer, renumbered ids
        self._once: dict[Any, Any] = {}

    def start(self, layer: int) -> int:
        """First layer of the stretch of equal packing that ``layer`` belongs to."""
        return max(first for first in self.packings if first <= layer)

    def packing(self, layer: int) -> Packing:
        return self.packings[self.start(layer)]

    def past(self, layer: int) -> int:
        """Columns ``layer`` held before this chunk."""
        return self._past[layer]

    def visible(self, layer: int) -> Tensor | None:
        """(B, past + W) bool of real columns for ``layer``, this chunk included; None when all are."""
        past, start, old = self.past(layer), self.start(layer), self.past_real[layer]
        key = ("real", id(old), past, start)
        self.real[layer] = self._memo(key, partial(self._extend, old, past, self.packings[start]))
        return self.real[layer]

    @staticmethod
    def _extend(old: Tensor | None, past: int, packing: Packing) -> Tensor | None:
        if packing.valid is None and old is None:
            return None
        batch, device = packing.order.shape[0], packing.order.device
        new = packing.valid
        if new is None:
            new = torch.ones(batch, packing.width, dtype=torch.bool, device=device)
        # a cropped cache is shorter than what was noted
        seen = torch.ones(batch, past, dtype=torch.bool, device=device) if old is None else old[:, :past]
        return torch.cat([seen, new], dim=1)

    def _memo(self, key: Any, make: Any) -> Any:
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    # ------------------------------------------------------------------ signals

    def look(self, signal: Signal, group: ImageGroup) -> Tensor:
        """The value of ``signal`` for the current tokens of ``group``: (B, N), or (B,) for one number per image."""
        if signal.part == "llm":
            value, packing = self.captured[signal]
            return value[group.samples[:, None], packing.slot[group.samples[:, None], group.seats]]
        behind = [[self.tower_values[signal][i] for i in self.behind[m]] for m in group.members]
        if behind[0][0].ndim == 0:  # one number per picture
            value = torch.stack([x[0] if len(x) == 1 else combine(torch.stack(x)[None])[0] for x in behind])
            return value.to(group.seats.device)
        value = torch.stack([x[0] if len(x) == 1 else torch.cat(x) for x in behind]).to(group.seats.device)
        own = value.gather(1, group.source.clamp_min(0))
        # a summary token sits nowhere: it has the mean of the tokens it stands for
        mean = group_mean(value.unsqueeze(-1), group.assign, group.num_tokens).squeeze(-1)
        return torch.where(group.source < 0, mean, own)

    # ------------------------------------------------------------------ shortening

    def run(self, stage: Stage, layer: int | None, groups: list[ImageGroup]) -> tuple[list[ImageGroup], bool]:
        """Carry out the steps of a place, as decided before for this prompt or by asking the methods."""
        decided = self.decisions.get((stage, layer)) or self.recalled.get((stage, layer))
        after, done, changed = self.pipeline.run(stage, layer, groups, self.look, decided)
        self.decisions[stage, layer] = done
        return after, changed

    def repack(self, layer: int, groups: list[ImageGroup]) -> Packing:
        """Put the packing in force from ``layer`` on, after images went from ``self.groups`` to ``groups``."""
        before = self.packing(layer)
        counts = list(self.visual_counts[self.start(layer)])
        for sign, side in ((-1, self.groups), (1, groups)):
            for group in side:
                for sample in group.samples.tolist():
                    counts[sample] += sign * group.num_tokens
        self.visual_counts[layer] = counts
        self.packings[layer] = packing = repacked(before, self.groups, groups)
        return packing

    def shorten(self, layer: int, hidden: Tensor) -> Tensor:
        """Carry out the llm steps of ``layer`` on ``hidden`` (B, W, D); returns the (shorter) hidden states.

        When gradient checkpointing runs a layer again, the same is done again, as it was decided.
        """
        start = self.start(layer - 1)
        before = self.packings[start]
        again = layer in self._entered
        beside = self.beside.get(start)
        entered = self._entered.setdefault(layer, self.groups)
        groups, changed = self.run("llm", layer, [group.showing(hidden, before.slot, beside) for group in entered])
        if changed:
            with self.pipeline.stopwatch(hidden.device):
                packing = self.packings[layer] if again else self.repack(layer, groups)
                slots = before.slot.gather(1, packing.order)
                hidden = write(take_rows(hidden, slots), packing, groups, "features")
                if beside is not None:
                    self.beside[layer] = write(take_rows(beside, slots), packing, groups, "companions")
                if not again:
                    self._follow(layer, start, before.slot.gather(1, carried(packing, groups)), groups)
        if not again:
            self.groups = [group.settle() for group in groups]
        return hidden

    def _follow(self, layer: int, start: int, at: Tensor, groups: list[ImageGroup]) -> None:
        """Positions from ``layer`` on: slot i carries what slot ``at[:, i]`` carried since ``start``."""
        self._slots[layer] = self._slots[start].gather(1, at) if start in self._slots else at
        if start in self._ids:
            self._ids[layer] = self._ids[start].gather(1, at)
        if any(group.renumbered for group in groups):
            self.renumber(layer, self._slots[layer], self._ids.get(layer))

    # ------------------------------------------------------------------ positions

    def renumber(self, layer: int, slots: Tensor, numbered: Tensor | None = None) -> None:
        """From ``layer`` on, count positions along the shortened sequence.

        ``slots`` (B, W) finds the caller's ids at the door; ``numbered`` (B, W) are the ids so far, where earlier layers
        renumbered already.
        """
        ids = self._flat_positions().expand(slots.shape[0], -1).gather(1, slots)
        if numbered is None:
            before = self.shift[layer]  # left by the text before this chunk
            numbered = ids if before is None else ids - before[:, None]
        valid = self.packings[layer].valid
        real = torch.ones_like(ids) if valid is None else valid.long()
        first = numbered.gather(1, real.argmax(dim=1, keepdim=True))
        new = (first + real.cumsum(dim=1) - 1).clamp_min(0)
        shift = ids[:, -1] - new[:, -1]
        self.shift = [*self.shift[:layer], *[shift] * (self.depth - layer)]
        self._ids[layer] = new

    def _flat_positions(self) -> Tensor:
        assert self.positions is not None
        return self.positions[0] if self.positions.ndim == 3 else self.positions

    def ids(self, layer: int) -> Tensor | None:
        """(B, W) position ids of ``layer`` where they are not the caller's; None where they are."""
        start, shift = self.start(layer), self.shift[layer]
        if start in self._ids:
            return self._ids[start]
        return None if shift is None else (self._flat_positions() - shift[:, None]).clamp_min(0)

    def position_embeddings(self, layer: int, table: tuple[Tensor, Tensor], hidden: Tensor) -> tuple[Tensor, ...]:
        """The rows of the door's rotary ``table`` for ``layer``, or a table of its own where ids are renumbered."""
        start, shift = self.start(layer), self.shift[layer]
        if shift is not self.shift[0]:
            kind = layer_type(self.decoder.config, layer)
            return self._memo(("rotary", start, id(shift), kind), lambda: self._rotary(layer, kind, hidden))
        if start not in self._slots:
            return table
        slots = self._slots[start].to(table[0].device)
        return self._memo(("table", id(table[0]), start), lambda: tuple(_rotary_rows(t, slots) for t in table))

    def _rotary(self, layer: int, kind: str, hidden: Tensor) -> tuple[Tensor, ...]:
        ids = self.ids(layer)
        assert ids is not None, "a shift gives ids of their own"
        assert self.positions is not None
        if self.positions.ndim == 3:
            ids = ids.expand(self.positions.shape[0], -1, -1)
        embed = self.decoder.rotary_emb
        by_kind = "layer_type" in inspect.signature(embed.forward).parameters
        return embed(hidden, ids, kind) if by_kind else embed(hidden, ids)

    # ------------------------------------------------------------------ masks

    def mask(self, layer: int, hidden: Tensor) -> Any:
        """The attention mask of ``layer`` for its own cache length."""
        config = self.decoder.config
        kind = layer_type(config, layer)
        visible = self.visible(layer)
        if visible is None and self.cache is None:
            visible = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        key = ("mask", kind, self.past(layer), self.start(layer), id(self.past_real[layer]))
        return self._memo(key, lambda: self._mask(layer, kind, hidden, visible))

    def _mask(self, layer: int, kind: str, hidden: Tensor, visible: Tensor | None) -> Any:
        return layer_mask(
            self.decoder.config,
            kind,
            None if self.two_way is None or hidden.shape[1] == 1 else self._blocks(layer),
            self.past(layer),
            self.windowed,
            inputs_embeds=hidden,
            attention_mask=visible,
            cache=self.cache,
            position_ids=None,
            layer_idx=layer,
        )

    def _blocks(self, layer: int) -> Tensor:
        """(B, W) long, the block of each slot; -1: none."""
        assert self.two_way is not None
        packing = self.packing(layer)
        block = self.two_way.gather(1, packing.order)
        return block if packing.valid is None else block.masked_fill(~packing.valid, -1)

    def sees_up_to(self, layer: int) -> Tensor | None:
        """(B, W) long, the last slot that each slot attends to in this chunk; None where all is causal."""
        return None if self.two_way is None else ends_of(self._blocks(layer))

    def whole_block(self, layer: int) -> bool:
        """Whether all tokens of this chunk attend to each other, whatever the window of ``layer``."""
        if self.two_way is None or self.windowed:
            return False
        blocks, valid = self._blocks(layer), self.packing(layer).valid
        return bool((blocks == 0 if valid is None else (blocks == 0) | ~valid).all())

    def differs(self, layer: int) -> bool:
        """Whether ``layer`` needs anything but what the decoder hands to every layer."""
        return (
            self.start(layer) != 0
            or self.past(layer) != self.past(0)
            or self.past_real[layer] is not self.past_real[0]
            or self.shift[layer] is not self.shift[0]
        )

    # ------------------------------------------------------------------ after the last layer

    def trim_cache(self, hidden: Tensor) -> None:
        """Carry out the cache steps: from their layer on, the cache keeps the tokens that survived everything."""
        for layer in self.pipeline.layers("cache"):
            final = self.packing(self.depth - 1)
            groups = [group.showing(hidden, final.slot) for group in self.groups]
            groups, _ = self.run("cache", layer, groups)
            if any(group.moved for group in groups):
                raise ValueError("a cache step must select tokens in order; merging cached keys is not supported")
            survivors = repacked(final, self.groups, groups)
            self.groups = [group.settle() for group in groups]
            if self.cache is None:
                return
            for i in range(layer, self.depth):
                packing, past = self.packing(i), self.past(i)
                if packing.counts == survivors.counts:
                    continue
                slots = packing.slot.gather(1, survivors.order) + past
                old = torch.arange(past, device=slots.device).expand(slots.shape[0], past)
                keep_columns(self.cache, i, torch.cat([old, slots], dim=1))
                key = ("trimmed", id(self.past_real[i]), past, layer)
                self.real[i] = self._memo(key, partial(self._extend, self.past_real[i], past, survivors))
            if any(step.decode_ids == "cache_length" for _, step in self.pipeline.at("cache", layer)):
                self._count_cache_as_position()

    def _count_cache_as_position(self) -> None:
        """From here on a new token's position id in a layer is the number of real tokens that layer's cache holds."""
        following = self._flat_positions()[:, -1] + 1
        shifts: dict[int, Tensor] = {}
        for i in range(self.depth):
            real, length = self.real[i], int(physical_length(self.cache, i))
            held = following.new_full(following.shape, length) if real is None else real.sum(dim=1)
            key = length if real is None else id(real)
            shifts.setdefault(key, following - held)
            self.shift = [*self.shift[:i], shifts[key], *self.shift[i + 1 :]]

    def state(self) -> DecodeState:
        """What the next chunk must know."""
        logical = self.offset + self.packings[0].alive.shape[1]
        gap = logical - int(physical_length(self.cache, 0))
        return DecodeState(gap=gap, real=self.real, shift=self.shift)


def repacked(before: Packing, old: list[ImageGroup], new: list[ImageGroup]) -> Packing:
    """The packing after images went from ``old`` to ``new``."""
    alive, counts = before.alive.clone(), list(before.counts)
    for sign, groups in ((-1, old), (1, new)):
        for group in groups:
            alive[group.samples[:, None], group.seats] = sign > 0
            for sample in group.samples.tolist():
                counts[sample] += sign * group.num_tokens
    return Packing(alive, counts)


def carried(packing: Packing, groups: list[ImageGroup]) -> Tensor:
    """(B, W) column whose position each slot of ``packing`` carries: its own, or that of the token now sitting there."""
    batch, length = packing.alive.shape
    columns = torch.arange(length, device=packing.alive.device).expand(batch, length)
    for group in groups:
        columns = scatter(columns, group.seats, group.samples, group.place)
    return columns.gather(1, packing.order)


def layer_type(config: Any, layer: int) -> str:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return kinds[layer]
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"


def _rotary_rows(table: Tensor, slots: Tensor) -> Tensor:
    """Rows ``slots`` (B, W) along dim -2 of a rotary table (B | 1, L, d) or, before 5.17 in Qwen2-VL, (3, B, L, d)."""
    if table.ndim == 3:
        return take_rows(table, slots)
    return torch.stack([take_rows(axis, slots) for axis in table])
