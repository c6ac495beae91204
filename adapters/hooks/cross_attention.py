"""Pictures that a decoder attends to across, beside its own sequence: their rows, and the mask over them, become fewer."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.adapters.hooks.across_cost import AcrossCost
from tokenreduce.adapters.hooks.checks import check_decoder, refuse_stray_cache
from tokenreduce.adapters.hooks.decoder_inputs import reduce_projected
from tokenreduce.adapters.hooks.model_hooks import ModelHooks
from tokenreduce.adapters.hooks.picture_pass import PicturePass
from tokenreduce.adapters.hooks.sequence_packing import Packing, write
from tokenreduce.adapters.hooks.visual_token_positions import as_videos
from tokenreduce.adapters.upstream.cache import given_cache, returned_cache
from tokenreduce.adapters.upstream.cross_attention import MASK, STATES, layers_across
from tokenreduce.kernels.rows import take_rows
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.traces import Trace

KEPT = "rows_attended"  # on a cache: what is left of the rows whose keys and values it holds


class RowsAttended(NamedTuple):
    """What is left of ``whole`` rows: ``order`` (B, W) long, the row in each slot; ``valid`` (B, W) bool, None: all are."""

    order: Tensor
    valid: Tensor | None
    whole: int

    @classmethod
    def all_of(cls, batch: int, whole: int, device: torch.device) -> RowsAttended:
        return cls(torch.arange(whole, device=device).expand(batch, whole), None, whole)

    def then(self, new: RowsAttended) -> RowsAttended:
        """With those of later pictures behind them."""
        order = torch.cat([self.order, new.order + self.whole], dim=1)
        if self.valid is None and new.valid is None:
            return RowsAttended(order, None, self.whole + new.whole)
        valid = [torch.ones_like(x.order, dtype=torch.bool) if x.valid is None else x.valid for x in (self, new)]
        return RowsAttended(order, torch.cat(valid, dim=1), self.whole + new.whole)

    def of(self, mask: Tensor, width: int) -> Tensor:
        """The part of ``mask`` (B, 1, L, whole) over rows that are left, ``width`` wide; nobody sees what fills it up."""
        repeat = mask.shape[0] // self.order.shape[0]
        order, valid = (None if x is None else x.repeat_interleave(repeat, 0) for x in (self.order, self.valid))
        assert order is not None, "only validity can lack"
        lowest = torch.finfo(mask.dtype).min
        mask = mask.gather(-1, order[:, None, None].expand(*mask.shape[:-1], -1))
        if valid is not None:
            mask = mask.masked_fill(~valid[:, None, None], lowest)
        return F.pad(mask, (0, width - mask.shape[-1]), value=lowest)


class CrossAttentionHooks(ModelHooks):
    """Shortens the rows that a decoder attends to across, at the projector; its own sequence stays as it is."""

    #: pass and rows of the call that is under way
    current = PerThread[tuple[PicturePass | None, RowsAttended] | None](nothing)

    def hook(self, handles: list[Any]) -> None:
        self.refuse_text("attends to pictures across, where no text is among them")
        check_decoder(self.family.decoder)
        handles.append(self.family.decoder.register_forward_pre_hook(self.enter, with_kwargs=True))
        handles.append(self.family.decoder.register_forward_hook(self.leave))

    @cached_property
    def cost(self) -> AcrossCost:
        """What the decoder costs, read off it at the first prompt."""
        return AcrossCost.of(self.family.decoder)

    def enter(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.current = None
        refuse_stray_cache(kwargs)
        states, mask, cache = kwargs.get(STATES), kwargs.get(MASK), given_cache(kwargs)
        first = layers_across(decoder)[0]
        held = 0 if cache is None else int(cache.get_seq_length(first))
        kept: RowsAttended | None = getattr(cache, KEPT, None) if held else None
        if self.call is None or (states is None and kept is None):
            return None
        kwargs, reduced = dict(kwargs), None
        if states is not None:
            shown = next(x for x in (kwargs.get("inputs_embeds"), kwargs.get("input_ids")) if x is not None)
            states = states.reshape(len(shown), -1, states.shape[-1])
            earlier = kept or (RowsAttended.all_of(len(shown), held, states.device) if held else None)
            kwargs[STATES], reduced, new = self.reduce(states, earlier)
            kept = new if earlier is None else earlier.then(new)
            held += new.order.shape[1]
        assert kept is not None, "of this call, or of the cache"
        self.current = reduced, kept
        if kept.order.shape[1] == kept.whole:
            return args, kwargs
        width = getattr(cache.layers[first], "max_cache_len", held) if cache is not None and cache.layers else held
        if mask is None and (kept.valid is not None or width != held):
            mask = kept.order.new_zeros(len(kept.order), 1, 1, kept.whole).to(decoder.dtype)
        if mask is not None:
            kwargs[MASK] = kept.of(mask, width)
        return args, kwargs

    def reduce(self, states: Tensor, earlier: RowsAttended | None) -> tuple[Tensor, PicturePass, RowsAttended]:
        """``states`` (B, N, D) of new pictures with what the methods leave of them, behind ``earlier`` rows."""
        assert self.call is not None, "the model's own call"
        batch, whole = states.shape[:2]
        if self.call.pictures is None:
            raise ValueError(
                f"{STATES} came without pixel_values, so that it is not known which rows belong to which picture; pass "
                "pixel_values to the wrapped model itself"
            )
        real, placed = self.family.rows_attended(self.call.arguments, (batch, whole))
        visual = torch.zeros(batch, whole, dtype=torch.bool)
        for item in placed:
            visual[item.image.sample, item.image.columns] = True
        encoded = self.pictures.of_this_call(int(visual.sum()), self.call, batch, continues=False)
        if self.images_as_video:
            placed = as_videos(placed)
        device = states.device
        packing = Packing.untouched(real.to(device), real.sum(dim=1).tolist())
        reduced = PicturePass(self.pipeline, packing, visual, 0 if earlier is None else earlier.whole)
        self.show(reduced, placed, encoded, device)
        scope = self.scopes.scope
        reduced.repeat = 1 if scope is None else scope.repeat(batch)  # pictures are encoded once for every beam
        changed = reduce_projected(reduced, states)
        packing = reduced.packings.at(0)
        if changed:
            with self.pipeline.stopwatch(device):
                states = write(take_rows(states, packing.order), packing, reduced.groups, "features")
        reduced.groups = [group.settle() for group in reduced.groups]
        return states, reduced, RowsAttended(packing.order, packing.valid if changed else None, whole)

    def leave(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.current is None:
            return
        (reduced, kept), cache = self.current, returned_cache(output)
        if cache is not None:
            setattr(cache, KEPT, kept)
        if reduced is None:
            if self.done.report is not None:
                self.done.report.step_stopwatch.add(self.pipeline.stopwatch.lap())
            return
        assert self.call is not None, "the model's own call"
        trace = Trace(reduced.groups, reduced.visual, reduced.offset, repeat=reduced.repeat)
        tokens, past = self.text_lengths(output, cache)
        self.done.note(trace, self.cost.report(reduced, trace, cache, kept.whole, tokens, past))

    def text_lengths(self, output: Any, cache: Any) -> tuple[list[int], int]:
        """Real tokens of each row in this call, and columns before it."""
        batch, length = output[0].shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length()) - length
        mask = None if self.call is None else self.call.arguments.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            return [length] * batch, past
        return mask[:, past : past + length].sum(dim=1).tolist(), past
