"""What the vision towers are asked for while they run, kept until the decoder needs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.attention_functions import Probe
from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.arriving_views import segments_of, views_of
from tokenreduce.adapters.hooks.call_scope import CallScopes
from tokenreduce.adapters.hooks.encoder_blocks import attach_blocks
from tokenreduce.adapters.hooks.encoder_merging import EncoderMerging
from tokenreduce.adapters.hooks.encoding_cost import EncodingCost, EncodingHooks
from tokenreduce.adapters.hooks.method_calls import MethodCall
from tokenreduce.adapters.hooks.packed_units import Segment
from tokenreduce.adapters.hooks.ragged_rows import View
from tokenreduce.adapters.hooks.tower_entrance import TowerEntrance
from tokenreduce.adapters.hooks.tower_listener import TowerListener, attention_statistic
from tokenreduce.adapters.hooks.tower_passes import TowerPass
from tokenreduce.adapters.hooks.tower_rows import TowerRows
from tokenreduce.adapters.hooks.unit_rows import in_batch, rows_of
from tokenreduce.adapters.upstream.model import OF_BLOCKS
from tokenreduce.kernels.fingerprint import fingerprint
from tokenreduce.layout import Layout
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.pipeline import ActivePipeline
from tokenreduce.signals import AttentionReceived, ClsAttention, ImageFingerprint, ProjectorInput, Signal
from tokenreduce.signals import TowerRows as RowsOfBlock

PIXELS = ("pixel_values", "hidden_states")  # what towers call them; else it is their first argument


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
        self.wanted = [s for s in pipeline.now.listens if s.part == "tower"]
        self.blocks: dict[int, list[Signal]] = {}  # with attention to listen to
        for signal in self.wanted:
            if isinstance(signal, ClsAttention):
                self.blocks.setdefault(signal.block, []).append(signal)
            elif isinstance(signal, AttentionReceived):
                self.blocks.setdefault(signal.layer, []).append(signal)
        self.rows = TowerRows(family, self.wanted)
        self.costs = EncodingHooks(family, self.cost_under_way, self.merged_units)
        facts = family.facts()
        for signal in self.wanted:
            if isinstance(signal, ClsAttention) and not facts.has_cls:
                raise ValueError(
                    f"{signal} is asked for, but the vision tower of a {facts.family} model has no [CLS] token; ask for "
                    f"AttentionReceived({signal.block}) instead"
                )
        self.entrance = TowerEntrance(family, pipeline)
        enters = pipeline.now.enters is not None and not family.packs
        merges = bool(pipeline.now.layers("encoder")) or enters
        self.encoders = [
            EncoderMerging(
                family.blocks(t) if merges else [],
                pipeline,
                family.patch_grid(t),
                facts.tower_prefix,
                side=family.unit,
                expand=not family.unit_mergers,
            )
            for t in range(len(family.towers))
        ]
        for encoder in self.encoders:
            encoder.views = self.views
            encoder.segments = self.segments if family.packs else None
            encoder.entering = self.entering

    def cost_under_way(self) -> EncodingCost | None:
        passes = self.scopes.encoded.passes
        return passes[-1].cost if passes and not self.rows.projecting else None

    def merged_units(self) -> tuple[int, int]:
        """Units, or rows, that a tower that packs is left with now, and those of one that is not reduced."""
        if self.current is not None and self.current.entered is not None:
            entered, cost = self.current.entered, self.current.cost
            return (len(entered.rows), len(entered.entering)) if cost is not None and cost.whole else (1, 1)
        encoder = None if self.current is None else self.encoders[self.current.tower]
        state = encoder.state if encoder is not None and encoder.blocks and not encoder.expand else None
        return (1, 1) if state is None else (state.size.shape[1], state.assign.shape[1])

    def finish(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.current is not None and self.current.entered is not None:
            self.current.entered.known.clear()
        self.current = None

    @property
    def latest(self) -> TowerPass:
        """The pass under way, or the last one."""
        return self.scopes.encoded.passes[-1]

    def views(self, batch: int) -> list[View]:
        scope = self.scopes.scope
        ids = None if scope is None else scope.input_ids
        return views_of(self.family, self.latest, self.pipeline.now, batch, ids)

    def segments(self) -> list[Segment]:
        return segments_of(self.family, self.latest, self.pipeline.now)

    def attach(self, handles: list[Any]) -> None:
        """Append hooks and probes, each with ``remove``, to ``handles``."""
        for t, tower in enumerate(self.family.towers):
            handles.append(tower.register_forward_pre_hook(partial(self.begin, t), with_kwargs=True))
            handles.append(tower.register_forward_hook(self.finish, always_call=True))
            self.entrance.attach(t, handles)
            for block in self.blocks:
                attention = self.family.tower_attention(block, t)
                hear = TowerListener(
                    partial(self.listen, t, block),
                    self.pipeline,
                    partial(self.borders, block) if self.family.packs else None,
                )
                handles.append(Probe(attention, hear))
                if self.family.packs:
                    handles.append(attention.register_forward_hook(hear.whole, always_call=True))
            self.rows.attach(t, partial(self.hear_rows, t), handles)
            if self.encoders[t].blocks:
                attach_blocks(self.encoders[t], handles)
                handles.append(tower.register_forward_hook(self.end))
                handles += [m.register_forward_hook(partial(self.widen, t)) for m in self.family.unit_mergers]
        self.rows.attach_projector(self.hear_projector, handles)
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
        arguments = by_name(module, args, kwargs)
        pixels = arguments.pop(next((k for k in PIXELS if k in arguments), next(iter(arguments))))
        encoded = self.scopes.encoded
        rows = 0 if self.family.packs else len(pixels)
        call = TowerPass(tower, rows, {**arguments, **encoded.announced}, tuple(pixels.shape))
        call.cost = EncodingCost(self.costs.shapes[tower])
        encoded.announced = {}
        if ImageFingerprint() in self.wanted:
            with self.pipeline.now.stopwatch(pixels.device):
                call.prints = torch.cat([fingerprint(piece) for piece in self.family.pieces(call, pixels)])
        encoded.add(call)
        self.encoders[tower].now = None  # nothing of an earlier pass
        self.current = call
        self.entrance.begin(call, pixels)

    def end(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Note what was merged, and give the model its hidden states at full width."""
        call = self.latest
        state = call.state = self.encoders[call.tower].state
        if state is None or not state.touched:
            return None
        if call.cost is not None:
            call.cost.merged = state.counts(len(self.encoders[call.tower].blocks))
            call.cost.given = self.encoders[call.tower].given
            call.cost.arrived = state.unmerged
        if output.get("hidden_states") is not None:
            output["hidden_states"] = state.full_width(output["hidden_states"], averaged=True)
        if not self.encoders[call.tower].expand:
            output["last_hidden_state"] = state.widened(output["last_hidden_state"])
            if output.get(OF_BLOCKS) is not None:
                output[OF_BLOCKS] = [state.averaged_units(x[None])[0] for x in output[OF_BLOCKS]]
        return output

    def widen(self, tower: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Give each unit of a packed tower the row that ``output`` (U, C) of a module behind its blocks has for it."""
        state = self.encoders[tower].state
        if self.current is None or state is None or not state.touched:
            return output
        return rows_of(output[None], state.assign)[0]

    def entering(self, layouts: list[Layout]) -> Tensor | None:
        return self.entrance.in_batch(self.latest, layouts)

    def borders(self, block: int) -> list[int] | None:
        """Rows in ``block`` of each picture of the pass that is running, one after the other; None: no pass is."""
        return None if self.current is None else self.current.counts(self.family.row_counts(self.current, block))

    @torch.no_grad()
    def listen(
        self, tower: int, block: int, query: Tensor, key: Tensor, mask: Any, scale: float, cuts: Tensor | None
    ) -> None:
        state = self.encoders[tower].state if self.encoders[tower].blocks else None
        call = self.current
        if call is None:
            return
        there = None if state is None or state.alike else state.units.spread(state.size > 0)
        with self.pipeline.now.stopwatch(query.device):
            for signal in self.blocks[block]:
                value = attention_statistic(signal, query, key, mask, scale, cuts, there, packed=not call.rows)
                if state is not None:
                    value = value.gather(1, state.went(block).clamp_min(0))
                if call.entered is not None and value.shape[1] == len(call.entered.rows):
                    value = call.entered.spread(value[0])[None]
                call.values.setdefault(signal, []).append(value if call.rows else value.flatten())

    def hear_rows(self, tower: int, block: int, signal: Signal, rows: Tensor) -> None:
        """Rows of ``block`` are what ``signal`` asked for; of all of its rows, or of those in front of the patches."""
        call = self.current
        if call is None:
            return
        state = self.encoders[tower].state if self.encoders[tower].blocks else None
        if state is not None and signal.axis == "token":
            leaving, rows = isinstance(signal, RowsOfBlock), in_batch(rows)
            whole = state.units.count(state.assign.shape[1])
            if not leaving or rows.shape[1] != whole:  # the last block gives them whole
                rows = state.whole(rows, None if leaving else state.entered[block])
        rows = rows if call.rows else rows.flatten(0, -2)
        if call.entered is not None and len(rows) == len(call.entered.rows):
            rows = call.entered.spread(rows)
        call.values.setdefault(signal, []).append(rows)

    def hear_projector(self, rows: Tensor) -> None:
        if self.scopes.encoded.passes and not self.rows.projecting:
            entered = self.latest.entered
            rows = rows if self.latest.rows else rows.flatten(0, -2)
            rows = rows if entered is None else entered.spread(rows, tokens=True)
            encoder = self.encoders[self.latest.tower]
            state = encoder.state if encoder.blocks and not encoder.expand else None
            if state is not None and state.touched:
                rows = rows_of(rows[None], state.assign)[0]
            self.latest.values.setdefault(ProjectorInput(), []).append(rows)


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``module``, in order, each by its name."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}
