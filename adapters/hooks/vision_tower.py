"""What the vision towers are asked for while they run, kept until the decoder needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.attention_functions import Probe
from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.call_scope import CallScopes
from tokenreduce.adapters.hooks.encoder_blocks import EncoderMerging
from tokenreduce.adapters.hooks.encoding_cost import EncodingCost, EncodingHooks
from tokenreduce.adapters.hooks.method_calls import MethodCall
from tokenreduce.adapters.hooks.ragged_rows import View
from tokenreduce.adapters.hooks.tower_listener import TowerListener
from tokenreduce.adapters.hooks.tower_passes import TowerPass
from tokenreduce.kernels.attention_received import Over, attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.fingerprint import fingerprint
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.pipeline import ActivePipeline
from tokenreduce.signals import AttentionReceived, ClsAttention, ImageFingerprint, Keys, Signal


class VisionTower:
    """Notes what the towers encode and captures their signals, picture by picture, in the order of encoding.

    Since transformers 5.18 ``generate`` encodes images once, before the forward pass, and without a cache passes the
    same features in at every step; so values wait here, and stay until a tower runs again.
    """

    #: the pass that runs; when gradient checkpointing runs blocks again, there is none
    current = PerThread[TowerPass | None](nothing)

    def __init__(self, family: Family, pipeline: ActivePipeline, scopes: CallScopes) -> None:
        self.family = family
        self.pipeline = pipeline
        self.scopes = scopes
        self.wanted = [s for s in pipeline.now.needs if s.part == "tower" and not isinstance(s, Keys)]
        self.blocks: dict[int, list[Signal]] = {}
        for signal in self.wanted:
            if isinstance(signal, ClsAttention):
                self.blocks.setdefault(signal.block, []).append(signal)
            elif isinstance(signal, AttentionReceived):
                self.blocks.setdefault(signal.layer, []).append(signal)
        self.costs = EncodingHooks(family, self.cost_under_way)
        facts = family.facts()
        for signal in self.wanted:
            if isinstance(signal, ClsAttention) and not facts.has_cls:
                raise ValueError(
                    f"{signal} is asked for, but the vision tower of a {facts.family} model has no [CLS] token; ask for "
                    f"AttentionReceived({signal.block}) instead"
                )
        merges = bool(pipeline.now.layers("encoder"))
        self.encoders = [
            EncoderMerging(family.blocks(t) if merges else [], pipeline, family.patch_grid(t), facts.tower_prefix)
            for t in range(len(family.towers))
        ]
        for encoder in self.encoders:
            encoder.views = self.views

    def cost_under_way(self) -> EncodingCost | None:
        passes = self.scopes.encoded.passes
        return passes[-1].cost if passes else None

    def finish(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.current = None

    @property
    def latest(self) -> TowerPass:
        """The pass under way, or the last one."""
        return self.scopes.encoded.passes[-1]

    def views(self, batch: int) -> list[View]:
        """The rows of the pass that is running: which of their patches become tokens, and how many of these are left."""
        views: list[View] = []
        pipeline = self.encoders[0].pipeline
        for picture in self.family.arriving(self.latest):
            if picture.pooled:  # refused once the model has pooled them
                views += [View(None, (None,) * len(pipeline.methods))] * picture.rows
                continue
            own = picture.layout.views or [replace(picture.layout, frames=1)] * picture.rows
            shares = pipeline.view_shares([view.num_tokens for view in own])
            views += [View(view.cells, share) for view, share in zip(own, shares)]
        return views if len(views) == batch else []

    def attach(self, handles: list[Any]) -> None:
        """Append hooks and probes, each with ``remove``, to ``handles``."""
        for t, tower in enumerate(self.family.towers):
            handles.append(tower.register_forward_pre_hook(partial(self.begin, t), with_kwargs=True))
            handles.append(tower.register_forward_hook(self.finish, always_call=True))
            for block in self.blocks:
                attention = self.family.tower_attention(block, t)
                hear = TowerListener(partial(self.listen, t, block), self.pipeline, self.family.packs)
                handles.append(Probe(attention, hear))
                if self.family.packs:
                    handles.append(attention.register_forward_hook(hear.whole, always_call=True))
            if self.encoders[t].blocks:
                self.encoders[t].attach(handles)
                handles.append(tower.register_forward_hook(self.end))
        self.costs.attach(handles)
        for owner, method, note, ahead in self.family.noted_calls():
            handles.append(MethodCall(owner, method, partial(self.note, note, ahead)))

    def note(self, note: Callable[[dict[str, Any]], dict[str, Any]], ahead: bool, arguments: dict[str, Any]) -> None:
        """Add what a method call tells to the latest pass, or, where it is ``ahead``, to the next one."""
        if ahead:
            self.scopes.encoded.announced.update(note(arguments))
        elif self.scopes.encoded.passes:
            self.latest.arguments.update(note(arguments))

    def begin(self, tower: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name, pixels = (
            ("", args[0]) if args else next((k, kwargs[k]) for k in ("pixel_values", "hidden_states") if k in kwargs)
        )
        arguments = {k: v for k, v in kwargs.items() if k != name}
        encoded = self.scopes.encoded
        call = TowerPass(tower, 0 if self.family.packs else len(pixels), {**arguments, **encoded.announced})
        call.cost = EncodingCost(self.costs.shapes[tower])
        encoded.announced = {}
        if ImageFingerprint() in self.wanted:
            with self.pipeline.now.stopwatch(pixels.device):
                pieces = (
                    [pixels] if call.rows else [piece[None] for piece in pixels.split(self.family.patch_counts(call))]
                )
                call.prints = torch.cat([fingerprint(piece) for piece in pieces])
        encoded.add(call)
        self.current = call

    def end(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Note what was merged, and give the model its hidden states at full width."""
        call = self.latest
        state = call.state = self.encoders[call.tower].state
        if state is None or not state.touched:
            return None
        if call.cost is not None:
            call.cost.merged = state.counts(len(self.encoders[call.tower].blocks))
        if output.get("hidden_states") is not None:
            output["hidden_states"] = state.full_width(output["hidden_states"], averaged=True)
        return output

    @torch.no_grad()
    def listen(
        self, tower: int, block: int, query: Tensor, key: Tensor, mask: Any, scale: float, cuts: Tensor | None
    ) -> None:
        bias, visible = None, None
        if isinstance(mask, Tensor) and mask.ndim == 4:
            row = mask[:, 0, 0]  # what patches of the first query see, as all others do
            bias, visible = (row, row > torch.finfo(row.dtype).min / 2) if row.is_floating_point() else (None, row)
        state = self.encoders[tower].state if self.encoders[tower].blocks else None
        call = self.current
        if call is None:
            return
        with self.pipeline.now.stopwatch(query.device):
            for signal in self.blocks[block]:
                if isinstance(signal, ClsAttention):
                    value = attention_row(query[:, :, :1], key, scale, bias=bias, heads=signal.heads)[:, 0]
                else:
                    # windows of a packed picture differ in size: sums over their queries can be compared, means cannot
                    over: Over = "mean" if call.rows else "sum"
                    value = attention_received(
                        query, key, scale, bias=bias, visible=visible, query_mask=visible, cuts=cuts, over=over
                    )
                if state is not None:
                    value = value.gather(1, state.entered[block].clamp_min(0))
                call.values.setdefault(signal, []).append(value if call.rows else value[0])
