"""Which pictures a prompt shows, in which columns, and what is known of how they were encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.call_scope import CallScopes, Scope
from tokenreduce.adapters.hooks.features_ahead import EncodingMethod, FeaturesAhead
from tokenreduce.adapters.hooks.repeated_prompts import show_the_same, warn_of_mixed_pictures
from tokenreduce.adapters.hooks.tower_passes import Encoded, Finished, Pick
from tokenreduce.adapters.hooks.visual_token_positions import share_of
from tokenreduce.adapters.upstream.model import ENCODING_METHODS, feature_rows
from tokenreduce.kernels.fingerprint import combine
from tokenreduce.pipeline import ActivePipeline
from tokenreduce.signals import AttentionReceived, ImageFingerprint, ProjectorInput, Signal, block_of


class Call(NamedTuple):
    """What the multimodal model was called with; forgotten when its forward pass ends.

    Attributes:
        pictures: the object that image features come from: encoder outputs, or pixels.
        read: arguments, and what they hold on the host, read before the pictures are encoded: a device would have to finish
            with those first.
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    pictures: Any
    arguments: dict[str, Any]
    read: tuple[tuple[Tensor, Tensor], ...] = ()

    def on_host(self, x: Any) -> Any:
        """``x``, on the host where it was read ahead."""
        return next((copy for given, copy in self.read if given is x), x)


def read_ahead(*given: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    """Those of ``given`` that have a number per column, and copies of them on the host."""
    found = []
    for x in given:
        if isinstance(x, Tensor) and x.ndim == 2:
            found.append((x, x.cpu()))
    return tuple(found)


class Shown(NamedTuple):
    """Columns (B, L) bool on the CPU of a prompt's pictures, those of videos among them, and how they were encoded.

    ``encoded`` is None where there are none, or where they were encoded unseen and nothing of it is needed.
    """

    visual: Tensor
    video: Tensor
    encoded: Encoded | None = None


class PromptPictures:
    """Joins prompts to the passes of the towers: those of the same call, in order, or earlier ones, by their features."""

    def __init__(self, family: Family, pipeline: ActivePipeline, scopes: CallScopes) -> None:
        self.family = family
        self.scopes = scopes
        self.wanted = [s for s in pipeline.now.listens if s.part == "tower"]
        self.merges = bool(pipeline.now.layers("encoder")) or pipeline.now.enters is not None
        self.ahead = FeaturesAhead()
        self.warned = False  # of mixed-up pictures, once

    def attach(self, handles: list[Any]) -> None:
        """Append to ``handles`` what notes the pictures that a program encodes by itself."""
        for name in ENCODING_METHODS:
            if hasattr(self.family.core, name):
                handles.append(EncodingMethod(self.family.core, name, self.scopes, self._note_ahead))

    def shown(self, call: Call, embeds: Tensor, continues: bool) -> Shown:
        """The pictures in ``embeds`` (B, L, D), which ``call`` led to; ``continues``: a cached prompt comes before.

        Errors: ``ValueError`` where placeholders, or features encoded ahead, are not explained by what was encoded.
        """
        none = torch.zeros(embeds.shape[:2], dtype=torch.bool)
        if embeds.shape[1] == 1 or (call.pictures is None and call.inputs_embeds is None):
            return Shown(none, none)  # without pictures a placeholder is only a token, as prompt lookup may propose one
        visual, video = self.family.placeholders(call.on_host(call.input_ids), call.inputs_embeds)
        if not self.scopes.encoded.passes:
            repeat = 1 if self.scopes.scope is None else self.scopes.scope.repeat(len(embeds))
            found = self.ahead.find(embeds, None if call.input_ids is None else visual, repeat)
            if found is not None:
                return Shown(found.visual, found.video, self._encoded(found.picks, repeat))
        count = int(visual.sum())
        encoded = self.of_this_call(count, call, len(embeds), continues) if count else None
        if (
            encoded is not None
            and encoded.repeat > 1
            and not (self.warned or show_the_same(embeds, visual, encoded.repeat))
        ):
            self.warned = True
            warn_of_mixed_pictures(self.family.model.config.model_type)
        return Shown(visual, video, encoded)

    def _note_ahead(self, scope: Scope, output: Any) -> None:
        rows = feature_rows(output)
        if rows is not None:
            self.ahead.note(self._picks(scope, {}), rows.to(self.family.core.get_input_embeddings().weight.dtype))

    def _picks(self, scope: Scope, asked: Mapping[str, Any]) -> list[Pick]:
        """The pictures that ``scope`` encoded, in the order in which a prompt shows them; ``asked``: the model's arguments."""
        heard = [s for s in self.wanted if not isinstance(s, ImageFingerprint)]
        calls = [call for call in scope.encoded.passes if all(s in call.values for s in heard)]  # others were cut short
        for call in calls:
            call.asked = asked
        passes = [Finished(call, self.family.pictures(call)) for call in calls]
        picks = [Pick(passed, i) for passed in passes for i in range(len(passed.pictures))]
        order = self.family.arranged(calls, [len(passed.pictures) for passed in passes])
        return picks if order is None else [picks[i] for i in order]

    def of_this_call(self, visual: int, call: Call, batch: int, continues: bool) -> Encoded | None:
        """What is known of the pictures behind ``visual`` placeholders in ``batch`` rows; None: nothing was encoded here."""
        encoded = self.scopes.encoded
        encoded.taken = True
        picks = [] if self.scopes.scope is None else self._picks(self.scopes.scope, call.arguments)
        pictures = [pick.picture for pick in picks]
        if not continues or encoded.seen == len(pictures):
            encoded.seen = 0
        share = share_of(visual, pictures, encoded.seen, batch)
        if share is None:
            if not pictures and not self.wanted and not self.merges:
                return None
            raise ValueError(
                f"the prompt holds {visual} placeholders of image tokens but the wrapped model's vision tower encoded "
                f"{len(pictures)} images of {sum(p.columns for p in pictures)} tokens since the last prompt. Pass "
                "pixel_values to the wrapped model itself, prepared by its own processor; features encoded before "
                "wrapping, or by another model, carry no attention statistics. An image must reach the language model "
                "in one piece: do not set prefill_chunk_size so that it cuts an image, nor with several samples."
            )
        encoded.seen = share.stop
        return self._encoded(picks[share.start : share.stop], share.repeat)

    def _encoded(self, picks: Sequence[Pick], repeat: int) -> Encoded:
        return Encoded.of(picks, repeat, {signal: partial(self._per_picture, signal) for signal in self.wanted})

    def _per_picture(self, signal: Signal, passed: Finished) -> Sequence[Tensor | None]:
        call, pictures = passed
        if isinstance(signal, ImageFingerprint):
            assert call.prints is not None
            prints = call.prints.split([picture.rows or 1 for picture in pictures])
            return [own[0] if len(own) == 1 else combine(own[None])[0] for own in prints]
        values = torch.cat(call.values[signal])
        if isinstance(signal, ProjectorInput):
            return self.family.projected_per_picture(call, values, pictures)
        if signal.axis == "view":
            return values.split([picture.rows for picture in pictures])
        block = block_of(signal)
        assert block is not None, "a block's rows"
        found = self.family.rows_per_picture(call, values, pictures, block)
        if call.rows or not isinstance(signal, AttentionReceived):
            return found
        # sums over the queries of a frame become means
        counts = call.counts(self.family.row_counts(call, block))
        return [x * (picture.layout.frames / n) for x, picture, n in zip(found, pictures, counts, strict=True)]
