"""The hooks on a vision-language model: they note its call, shorten what its decoder is handed, and restore the length."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.attention_functions import KeySelection
from tokenreduce.adapters.hooks import decided_prompts, decoder_inputs, deepstack, split_prompt
from tokenreduce.adapters.hooks.cache_coding import code_cache, code_written
from tokenreduce.adapters.hooks.cache_reading import CachedPictures, StepReading
from tokenreduce.adapters.hooks.cache_trimming import trim_cache
from tokenreduce.adapters.hooks.cached_pictures import cached_pictures
from tokenreduce.adapters.hooks.checks import (
    check_cache,
    check_decoder,
    refuse_attentions,
    refuse_missing_cache,
    refuse_proposals,
    refuse_stray_cache,
)
from tokenreduce.adapters.hooks.decoder_layers import KEY, LayerHooks
from tokenreduce.adapters.hooks.decoder_outputs import at_full_length, report_of, trace_of
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.decoder_signals import DecoderSignals
from tokenreduce.adapters.hooks.kv_cache import adopt, state_of
from tokenreduce.adapters.hooks.model_hooks import ModelHooks
from tokenreduce.adapters.hooks.packed_rows import note_documents
from tokenreduce.adapters.hooks.passing_by import check_passing
from tokenreduce.adapters.hooks.sequence_packing import Packing, real_columns
from tokenreduce.adapters.hooks.tower_passes import Encoded
from tokenreduce.adapters.hooks.unmerging_layers import UnmergingLayer, unmerging_layers
from tokenreduce.adapters.upstream.cache import Cache, given_cache
from tokenreduce.adapters.upstream.decoder import reads_last_alone
from tokenreduce.adapters.upstream.decoder_shape import decoder_shape, with_experts_of_pictures
from tokenreduce.cost import StepsRead
from tokenreduce.flops import DecoderShape
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.pipeline import acts
from tokenreduce.uploading import uploaded


class VisionLanguageHooks(ModelHooks):
    """Shortens prompts on their way into the decoder and keeps masks, positions and caches in step ever after."""

    current = PerThread[DecoderPass | None](nothing)
    checked = False  # whether the cache was seen to hold what it should

    def hook(self, handles: list[Any]) -> None:
        decoder = self.family.decoder
        check_decoder(decoder)
        check_passing(self.family, self.pipeline)
        handles.append(decoder.register_forward_pre_hook(self.enter, with_kwargs=True))
        handles.append(decoder.register_forward_hook(self.leave, with_kwargs=True))
        if self.pipeline.unmerges:
            for layer in self.unmerging:
                layer.attach(handles)
        if self.pipeline.by_layer:
            signals = DecoderSignals(self.family, self.pipeline, self.under_way)
            for i, layer in enumerate(decoder.layers):
                handles += LayerHooks(i, signals).attach(layer)
            signals.attach(handles)
        if self.pipeline.decodes is not None:
            first = self.pipeline.decodes[1].layer or 0
            for i in (layer for layer in self.family.attending if layer >= first):
                handles.append(KeySelection(self.family.decoder_attention(i), partial(self.selection, i)))

    def under_way(self) -> DecoderPass | None:
        return self.current

    def selection(self, layer: int) -> tuple[Tensor, Tensor | None] | None:
        """The cached columns that new tokens read in ``layer`` of the pass under way; None: all."""
        reading = None if self.current is None else self.current.reading
        return None if reading is None else reading.selection(layer)

    @cached_property
    def shape(self) -> DecoderShape:
        """What the layers of the decoder cost, read off them at the first prompt."""
        return decoder_shape(self.family.decoder)

    @cached_property
    def unmerging(self) -> list[UnmergingLayer]:
        return unmerging_layers(self.family, self.pipeline)

    def enter(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.current = None
        if KEY in kwargs:  # the rest of a prompt, made ready
            return None
        refuse_stray_cache(kwargs)
        embeds, cache = kwargs.get("inputs_embeds"), given_cache(kwargs)
        if self.call is None or embeds is None:
            return None
        state = state_of(cache)
        code_written(cache, state)
        length = embeds.shape[1]
        if state is None and length == 1:
            return None  # a step after a prompt that was not reduced
        past = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
        visual, video, encoded = self.pictures.shown(self.call, embeds, continues=past > 0)
        images = decoder_inputs.locate(self.family, visual, video, encoded, self.images_as_video)
        if not images and length > 1 and self.call.pictures is None and self.call.inputs_embeds is not None:
            warnings.warn(
                "inputs_embeds came without pixel_values: image features among them cannot be told from text and are not "
                "reduced. Pass input_ids and pixel_values to let the wrapped model encode its images itself, or leave features "
                "as get_image_features of the wrapped model returned them.",
                stacklevel=2,
            )
        mask = self.call.arguments.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = kwargs.get("attention_mask")
        real, past_real, counts = real_columns(mask, self.call.on_host, embeds, past, continues=state is not None)
        depth = decoder.config.num_hidden_layers
        reduced = self.current = DecoderPass(
            decoder,
            self.pipeline,
            cache,
            Packing.untouched(real, counts),
            [past_real] * depth if state is None else state.real,
            [None] * depth if state is None else state.shift,
            visual,
            offset=past,
        )
        by_picture = with_experts_of_pictures(kwargs)
        reduced.pictured = None if by_picture is None else by_picture & real
        scope, given = self.scopes.scope, self.call.arguments.get("attention_mask")
        if state is not None:
            self._read(reduced, state.pictures, past >= scope.prompt if scope and scope.prompt else past > 0)
        if not (scope is not None and scope.generates and given is not None):  # masks of a cache of fixed size
            note_documents(reduced, self.family, given, kwargs, real)
        if length > 1:
            reduced.masks.two_way = self.scopes.of_prompt(self.family.two_way(self.call.arguments, embeds), past)
        reduced.masks.windowed, reduced.masks.two_way_layers = self.family.windowed, self.family.two_way_layers
        reduced.last_alone = reads_last_alone(decoder, kwargs)
        changed, shown = False, embeds
        if images:
            self.show(reduced, images, encoded, embeds.device)
            if not decoder_inputs.uses_cache(decoder, kwargs):
                reduced.recalled = decided_prompts.recalled(scope, self.call.input_ids)
            if self.pipeline.ranks_by_text or self.scopes.told is not None:
                ends = self.scopes.prompt_ends(visual, past)
                reduced.question_end = None if ends is None else uploaded(ends, embeds.device)
            if self.pipeline.ranks_by_text:
                given = (self.call.input_ids, self.call.inputs_embeds)
                decoder_inputs.note_text(reduced, self.family, self.scopes, [item.image for item in images], given)
            shown = deepstack.take_over(reduced, kwargs)
            if encoded is not None and encoded.unseen:
                changed = decoder_inputs.drop_unseen(reduced, encoded, shown)
            if encoded is not None and encoded.states and self.pipeline.unmerges:
                return args, self.unmerged(reduced, encoded, shown, kwargs)
            if encoded is not None and encoded.states:
                changed = decoder_inputs.drop_merged(reduced, self.family, encoded, shown)
            changed |= decoder_inputs.reduce_projected(reduced, shown)
        refuse_proposals(reduced, None if scope is None else scope.prompt)
        reduced.passive = state is None and not changed and not self._acts_later(reduced)
        if reduced.passive:
            return None
        if self.output_length == "full":
            refuse_attentions(decoder, kwargs)
        if scope is not None and scope.generates and reduced.groups and not decoder_inputs.uses_cache(decoder, kwargs):
            refuse_missing_cache(self.pipeline, reduced.groups)
        kwargs = {**kwargs, "inputs_embeds": shown}
        split_prompt.note_chunks(reduced)
        changed |= split_prompt.cut_off(reduced, decoder, kwargs)
        with self.pipeline.stopwatch(embeds.device):
            decoder_inputs.hand_over(reduced, self.family.decoder, kwargs, changed)
        reduced.groups = [replace(group.settle(), entered=group.num_tokens) for group in reduced.groups]
        if self.pipeline.by_layer:
            kwargs[KEY] = reduced
        return args, kwargs

    def unmerged(self, reduced: DecoderPass, encoded: Encoded, shown: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a decoder that reads merged tokens at all places they stand for; its sequence stays as it is."""
        given = {**kwargs, KEY: reduced}
        with self.pipeline.stopwatch(shown.device):
            decoder_inputs.unmerge(reduced, self.family, encoded, shown, given)
        rows, each = reduced.unmerged, sum(layer.spared(self.family.decoder) for layer in self.unmerging)
        assert rows is not None, "just made"
        reduced.spared = [(reduced.visual.shape[1] - n) * each for n in rows.counts]
        reduced.groups = [replace(group.settle(), entered=group.num_tokens) for group in reduced.groups]
        reduced.passive = True
        return given

    @staticmethod
    def _read(reduced: DecoderPass, pictures: CachedPictures | None, answers: bool) -> None:
        """Note what a pass that goes on behind ``pictures`` may choose from; a single column that ``answers`` does."""
        if pictures is None or reduced.pipeline.decodes is None:
            return
        past, layer = reduced.masks.past, reduced.pipeline.decodes[1].layer
        assert layer is not None
        reduced.held_before, reduced.steps_read = pictures.held_at(past, layer), pictures.steps
        batch, length = reduced.visual.shape
        if answers and length == 1 and reduced.held_before:
            reduced.reading = StepReading(reduced.pipeline, pictures, reduced.held_before, past, batch)

    def _acts_later(self, reduced: DecoderPass) -> bool:
        later = [method for method, step in self.pipeline.steps if step.stage in ("llm", "cache", "decode")]
        return any(acts(method, group) for method in later for group in reduced.groups)

    def leave(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        reduced = self.current
        if reduced is None:
            return None
        hidden, steps = output[0], StepsRead()
        if not reduced.passive:
            for layer in range(reduced.depth):
                reduced.masks.visible(layer)
            if reduced.cache is not None and not self.checked:
                check_cache(reduced)
                self.checked = True
            groups = reduced.groups
            with self.pipeline.stopwatch(hidden.device):
                trim_cache(reduced, hidden)
                scope = self.scopes.scope
                code_cache(reduced, scope.prompt if scope is not None and scope.generates else None)
            if reduced.cache is None:
                ids = None if self.call is None else self.call.input_ids
                decided_prompts.remember(scope, ids, reduced.decisions)
            else:
                state = reduced.state()
                state.pictures = cached_pictures(reduced, groups, steps)
                adopt(reduced.cache, state)
            if reduced.rest is not None:
                self.current = None  # its own pass, which ends here
                output = split_prompt.read_rest(reduced, decoder, output)
            if reduced.reading is not None:
                reduced.reading.record(self.shape.step)
        if self.going_on is not None and reduced.groups:
            self.going_on = reduced.groups[-1].notes
        # decode steps and text that continues a shortened prompt leave trace and report alone
        if reduced.groups or not reduced.offset:
            trace = trace_of(reduced)
            uncounted = () if self.family.audio_encoder is None else ("the audio encoder",)
            self.done.note(trace, report_of(reduced, trace, self.shape, output, uncounted, steps))
        elif self.done.report is not None:
            self.done.report.step_stopwatch.add(self.pipeline.stopwatch.lap())
        found = at_full_length(reduced, output) if self.output_length == "full" else None
        return output if found is None else found
