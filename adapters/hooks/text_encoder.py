"""Pictures in the prompt of a text encoder: it becomes shorter, and so does what the decoder attends to across."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenreduce.adapters.hooks.across_cost import AcrossCost
from tokenreduce.adapters.hooks.call_scope import Scope
from tokenreduce.adapters.hooks.checks import check_decoder
from tokenreduce.adapters.hooks.decoder_inputs import locate, reduce_projected
from tokenreduce.adapters.hooks.method_calls import MethodCall
from tokenreduce.adapters.hooks.model_hooks import ModelHooks
from tokenreduce.adapters.hooks.picture_pass import PicturePass
from tokenreduce.adapters.hooks.prompt_pictures import Call
from tokenreduce.adapters.hooks.sequence_packing import Packing, carried, real_columns, write
from tokenreduce.adapters.upstream.cache import returned_cache
from tokenreduce.adapters.upstream.text_encoder import (
    MASK,
    PLACEHOLDERS,
    STATES,
    learned_positions,
    position_table,
)
from tokenreduce.kernels.rows import take_rows
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.traces import Trace


class Encoding(NamedTuple):
    """What the text encoder was handed in a call: its pass, and, where something left, the ``columns`` (B, W) whose
    positions the rest carries, and which of them are ``real`` (B, W) long.
    """

    scope: weakref.ref[Scope] | None
    reduced: PicturePass
    columns: Tensor | None = None
    real: Tensor | None = None


class TextEncoderHooks(ModelHooks):
    """Shortens the prompt of a text encoder at the projector; ``generate`` runs tower and encoder outside the model's call."""

    asked = PerThread[Tensor | None](nothing)  #: ids of the prompt whose pictures were just placed
    encoding = PerThread[Encoding | None](nothing)

    def hook(self, handles: list[Any]) -> None:
        self.refuse_text("takes its text apart from what methods are shown")
        encoder, decoder = self.family.text_encoder, self.family.decoder
        check_decoder(decoder)
        handles.append(MethodCall(self.family.core, PLACEHOLDERS, self.note_prompt))
        handles.append(encoder.register_forward_pre_hook(self.enter, with_kwargs=True))
        handles.append(position_table(encoder).register_forward_hook(self.positions))
        handles.append(decoder.register_forward_pre_hook(self.across, with_kwargs=True))
        handles.append(decoder.register_forward_hook(self.leave, with_kwargs=True))

    @cached_property
    def cost(self) -> AcrossCost:
        """What encoder and decoder cost, read off them at the first prompt."""
        return AcrossCost.of(self.family.decoder, self.family.text_encoder)

    def note_prompt(self, arguments: dict[str, Any]) -> None:
        self.asked = arguments["input_ids"]

    def enter(self, encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids, self.asked, self.encoding = self.asked, None, None
        embeds = kwargs.get("inputs_embeds")
        if embeds is None or (ids is None and (self.call is None or self.call.pictures is None)):
            return None
        call = Call(ids, None if ids is not None else self.call.inputs_embeds, None, {})  # type: ignore[union-attr]
        visual, video = self.family.placeholders(call.input_ids, call.inputs_embeds)
        encoded = self.pictures.of_this_call(int(visual.sum()), call, len(embeds), continues=False)
        images = locate(self.family, visual, video, encoded, self.images_as_video)
        real, _, counts = real_columns(kwargs.get("attention_mask"), call.on_host, embeds, 0, continues=False)
        reduced = PicturePass(self.pipeline, Packing.untouched(real, counts), visual, 0)
        self.show(reduced, images, encoded, embeds.device)
        changed = reduce_projected(reduced, embeds)
        scope = None if self.scopes.scope is None else weakref.ref(self.scopes.scope)
        self.encoding = Encoding(scope, reduced)
        if not changed:
            reduced.groups = [group.settle() for group in reduced.groups]
            return None
        with self.pipeline.stopwatch(embeds.device):
            packing = reduced.packings.at(0)
            columns = carried(packing, reduced.groups)
            valid = torch.ones_like(packing.order, dtype=torch.bool) if packing.valid is None else packing.valid
            if any(group.renumbered for group in reduced.groups):
                first = real.to(torch.uint8).argmax(dim=1, keepdim=True)
                columns = first + (valid.cumsum(dim=1) - 1).clamp_min(0)
            embeds = write(take_rows(embeds, packing.order), packing, reduced.groups, "features")
        reduced.groups = [group.settle() for group in reduced.groups]
        self.encoding = Encoding(scope, reduced, columns, valid.long())
        return args, {**kwargs, "inputs_embeds": embeds, "attention_mask": valid.long()}

    def positions(self, table: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Learned positions of the columns that are left."""
        left = self.encoding
        return None if left is None or left.columns is None else learned_positions(table, left.columns)

    def across(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states, mask = kwargs.get(STATES), kwargs.get(MASK)
        if states is None:
            return None
        left = self.of_this_scope()
        if left is not None and left.real is not None and left.real.shape[1] == states.shape[1]:
            return args, {**kwargs, MASK: left.real.repeat_interleave(len(states) // len(left.real), 0)}
        if mask is not None and mask.ndim == 2 and mask.shape[1] != states.shape[1]:
            raise ValueError(
                f"encoder_outputs has {states.shape[1]} columns and attention_mask {mask.shape[1]}: what a call left of a prompt "
                "is known within that call; pass input_ids and pixel_values again, or unwrap the model"
            )
        return None

    def of_this_scope(self) -> Encoding | None:
        """What the text encoder was handed in the call that is under way; None where it did not run, or not with pictures."""
        left, scope = self.encoding, self.scopes.scope
        known = left is not None and scope is not None and left.scope is not None and left.scope() is scope
        return left if known else None

    def leave(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        left, cache = self.of_this_scope(), returned_cache(output)
        tokens = output[0].shape[1]
        if left is None or (cache is not None and int(cache.get_seq_length()) > tokens):
            return  # a later step
        reduced, rows = left.reduced, len(output[0])
        reduced.repeat = rows // len(reduced.visual)  # the encoder runs once for every beam
        trace = Trace(reduced.groups, reduced.visual)
        whole = reduced.visual.shape[1]
        self.done.note(trace, self.cost.report(reduced, trace, cache, whole, [tokens] * len(reduced.visual), 0))
