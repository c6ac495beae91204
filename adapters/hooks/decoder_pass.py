"""One pass through the decoder: the images in it, what was decided for them, and who is left from which layer on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenreduce.adapters.hooks.attention_masks import LayerMasks
from tokenreduce.adapters.hooks.cache_reading import PictureEntries, StepReading
from tokenreduce.adapters.hooks.kv_cache import DecodeState, physical_length
from tokenreduce.adapters.hooks.picture_pass import PicturePass
from tokenreduce.adapters.hooks.position_ids import PositionIds
from tokenreduce.adapters.hooks.prompt_text import PromptText, normed
from tokenreduce.adapters.hooks.rest_of_prompt import Rest
from tokenreduce.adapters.hooks.sequence_packing import Packing, carried, write
from tokenreduce.adapters.hooks.unmerged_rows import UnmergedRows
from tokenreduce.adapters.upstream.cache import Cache
from tokenreduce.adapters.upstream.decoder import final_norm, holders
from tokenreduce.cost import StepsRead
from tokenreduce.groups import ImageGroup
from tokenreduce.joint_space import Question
from tokenreduce.kernels.rows import take_rows
from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import Columns, Hidden, Signal, Text, TextAttention
from tokenreduce.tokens import Rows
from tokenreduce.uploading import uploaded


class DecoderPass(PicturePass):
    """Everything that the hooks of one decoder pass share; travels with the pass, so that re-runs find it again.

    Attributes:
        real: (B, L) bool, columns of this chunk that are no padding.
        packings, masks, positions: what each layer is handed.
        last_alone: whether layers that reuse keys were asked for the last column alone.
        passive: nothing changes in this pass; it is only reported.
        captured: signals heard in decoder layers so far, with the packing they were heard under.
        signal_flops: what these cost.
        question_end: (B,) long, column of this chunk behind the question; None: the chunk ends with it.
        pictured: (B, L) bool, real columns that pass experts of pictures; None: the decoder has none.
        cached: by layer, what is left of this chunk in a cache that was trimmed.
        held_before: pictures of earlier chunks in the cache, which later tokens choose from; ``reading``, what the new
            tokens of this pass read of them, None: this pass reads everything; ``steps_read``, where that is counted.
        rest: the text behind the last picture, where it is read after this pass.
        unmerged: rows that stand at all places of the sequence they were merged of; None: columns are rows. ``spared``,
            multiply-adds per decoder row that this saves.
        norm: the decoder's last; ``text``: what the text of this chunk is, where a method asks for it.
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
        super().__init__(pipeline, packing, visual, offset)
        self.cache = cache
        self.real = packing.alive
        self.depth: int = decoder.config.num_hidden_layers
        held = holders(decoder.config)
        past = [int(physical_length(cache, i)) for i in held]
        self.positions = PositionIds(decoder, self.packings, shift)
        self.masks = LayerMasks(decoder.config, self.packings, cache, past, past_real, held)
        self.passive = False
        self.last_alone = False
        self.captured: dict[Signal, tuple[Tensor, Packing]] = {}
        self.signal_flops = 0
        self.question_end: Tensor | None = None
        self.pictured: Tensor | None = None
        self.norm = final_norm(decoder)
        self.text: PromptText | None = None
        self.cached: dict[int, Packing] = {}
        self.held_before: list[PictureEntries] = []
        self.steps_read: StepsRead | None = None
        self.reading: StepReading | None = None
        self.rest: Rest | None = None
        self.unmerged: UnmergedRows | None = None
        self.spared = [0] * len(self.length_in)
        self._entered: dict[int, list[ImageGroup]] = {}  # the images as they came to each llm step

    def question_slot(self, layer: int) -> Tensor | None:
        """(B,) slot of the question's last token in ``layer``; None when that is the last slot of every row."""
        packing = self.packings.at(layer)
        if self.question_end is None:
            return packing.last_slot()
        return packing.slot.gather(1, (self.question_end - 1).clamp_min(0)[:, None])[:, 0]

    def asking(self, layer: int) -> Tensor | None:
        """(B, W) bool of the slots of ``layer`` that hold a real token of the prompt, not of an answer; None: all do."""
        packing = self.packings.at(layer)
        if self.question_end is None:
            return packing.valid
        before = packing.order < self.question_end[:, None]
        return before if packing.valid is None else before & packing.valid

    def look(self, signal: Signal, group: ImageGroup) -> Any:
        """The value of ``signal`` for the current tokens, views, images or text of ``group``, as its ``axis`` says."""
        if isinstance(signal, Text):
            return self._text(signal, group)
        if isinstance(signal, Hidden):
            assert group.features is not None
            return normed(group.features, signal, self.norm)
        if isinstance(signal, Question):
            if self.masks.documents is not None:
                raise ValueError(
                    f"question: the samples of this call hold several documents in a row, and {signal.space} is told one "
                    "question for each; allowed: a row for every document"
                )
            return super().look(signal, group)
        if isinstance(signal, Columns):
            assert self.text is not None, "noted where a method asks for it"
            return self.text.column[group.samples[:, None], group.seats]
        if signal.part == "llm":
            value, packing = self.captured[signal]
            by_picture = isinstance(signal, TextAttention) and signal.queries == "marked"
            rows = uploaded(group.members, value.device) if by_picture else group.samples
            if signal.axis == "picture":
                return value[rows]
            return value[rows[:, None], packing.slot[group.samples[:, None], group.seats]]
        return super().look(signal, group)

    def _text(self, signal: Text, group: ImageGroup) -> Rows:
        assert self.text is not None, "noted where a method asks for it"
        if isinstance(signal.of, Hidden):
            assert self.hidden is not None, "what is being shortened"
            rows = self.text.rows(signal, group, *self.hidden)
            return replace(rows, features=normed(rows.features, signal.of, self.norm))
        value, packing = self.captured[signal.of]
        return self.text.rows(signal, group, value, packing.slot)

    def capture(self, signal: Signal, value: Tensor, layer: int, multiply_adds: int) -> None:
        """Note ``value`` (B, W) of the slots of ``layer``, and what it cost."""
        self.captured[signal] = (value, self.packings.at(layer))
        self.signal_flops += 2 * multiply_adds

    def shorten(self, layer: int, hidden: Tensor) -> Tensor:
        """Carry out the llm steps of ``layer`` on ``hidden`` (B, W, D); returns the (shorter) hidden states.

        When gradient checkpointing runs a layer again, the same is done again, as it was decided.
        """
        start = self.packings.start(layer - 1)
        before = self.packings.by_first[start]
        again = layer in self._entered
        beside = self.beside.get(start)
        entered = self._entered.setdefault(layer, self.groups)
        self.hidden = (hidden, before.slot)
        groups, changed = self.run("llm", layer, [group.showing(hidden, before.slot, beside) for group in entered])
        if changed:
            with self.pipeline.stopwatch(hidden.device):
                packing = self.packings.by_first[layer] if again else self.packings.repack(layer, self.groups, groups)
                slots = before.slot.gather(1, packing.order)
                hidden = write(take_rows(hidden, slots), packing, groups, "features")
                if beside is not None:
                    self.beside[layer] = write(take_rows(beside, slots), packing, groups, "companions")
                if not again:
                    at = before.slot.gather(1, carried(packing, groups))
                    renumbered = any(group.renumbered for group in groups)
                    self.positions.follow(layer, start, at, renumbered=renumbered)
        if not again:
            self.groups = [group.settle() for group in groups]
        return hidden

    def as_entered(self, layer: int, groups: list[ImageGroup]) -> list[ImageGroup]:
        """The images as decoder ``layer`` worked on them, where ``groups`` left the last one."""
        later = [first for first in self._entered if first > layer]
        return self._entered[min(later)] if later else groups

    def differs(self, layer: int) -> bool:
        """Whether ``layer`` needs anything but what the decoder hands to every layer."""
        past, real, shift = self.masks.past, self.masks.past_real, self.positions.shift
        return (
            self.packings.start(layer) != 0
            or past[layer] != past[0]
            or real[layer] is not real[0]
            or shift[layer] is not shift[0]
        )

    def held(self, layer: int) -> list[int]:
        """Tokens per sample that the cache of ``layer`` holds of this chunk."""
        if layer not in self.cached or self.rest is None:
            return self.cached.get(layer, self.packings.at(layer)).counts
        return [n + m for n, m in zip(self.cached[layer].counts, self.rest.counts, strict=True)]

    def state(self) -> DecodeState:
        """What the next chunk must know."""
        logical = self.offset + self.packings.by_first[0].alive.shape[1]
        gap = logical - int(physical_length(self.cache, 0))
        return DecodeState(gap=gap, real=self.masks.real, shift=self.positions.shift)
