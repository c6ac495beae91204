"""The decoder's door: a pre-hook shortens whatever the multimodal model hands over, a post-hook restores its length."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tokenreduce.adapters import deepstack
from tokenreduce.adapters.cache import adopt, num_bytes, state_of
from tokenreduce.adapters.encoder import TowerState
from tokenreduce.adapters.family import Family
from tokenreduce.adapters.layers import KEY, LayerDoor, Listener
from tokenreduce.adapters.merged import merged_group
from tokenreduce.adapters.packing import Packing, real_columns, write
from tokenreduce.adapters.pictures import Placed, as_tiles, as_videos, place
from tokenreduce.adapters.plan import Plan, carried, layer_type
from tokenreduce.adapters.tower import Encoded, TowerTap
from tokenreduce.adapters.upstream.cache import Cache, DynamicCache, cache_argument, given_cache, returned_cache
from tokenreduce.cost import DecoderShape, Report
from tokenreduce.groups import ImageGroup, group_images
from tokenreduce.kernels.rows import take_rows
from tokenreduce.pipeline import Pipeline, acts
from tokenreduce.tokens import PositionPolicy, Reduction
from tokenreduce.traces import Trace

OutputLength = Literal["full", "reduced"]
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "image_hidden_states")


class Call(NamedTuple):
    """What the multimodal model was called with; forgotten when its forward pass ends."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    pictures: Any  # the object that image features come from: encoder outputs, or pixels
    arguments: dict[str, Any]


class Decided(NamedTuple):
    """What was decided for a prompt that is run without a cache, and so from the start again at every step."""

    input_ids: Tensor
    pictures: Any
    decisions: dict[Any, list[Reduction]]


class DecoderDoor:
    """Shortens prompts on their way into the decoder and keeps masks, positions and caches in step ever after."""

    def __init__(
        self,
        family: Family,
        pipeline: Pipeline,
        output_length: OutputLength = "full",
        images_as_video: bool = False,
    ) -> None:
        if images_as_video and pipeline.layers("encoder"):
            raise ValueError(
                "images_as_video=True shows the images of a sample together, which a method inside the encoder cannot "
                "use; leave it out, or leave out the encoder method"
            )
        self.family = family
        self.images_as_video = images_as_video
        self.pipeline = pipeline
        self.output_length = output_length
        self.tap = TowerTap(family, pipeline)
        self.call: Call | None = None
        self.plan: Plan | None = None
        self.decided: Decided | None = None
        self.trace: Trace | None = None
        self.report: Report | None = None

    def attach(self) -> list[Any]:
        """Install every hook; returns their handles. Nothing stays behind when one of them fails."""
        core, decoder = self.family.core, self.family.decoder
        handles: list[Any] = []
        try:
            handles.append(core.register_forward_pre_hook(self.note_call, with_kwargs=True))
            handles.append(core.register_forward_hook(self.forget_call, always_call=True))
            handles.append(decoder.register_forward_pre_hook(self.enter, with_kwargs=True))
            handles.append(decoder.register_forward_hook(self.leave, with_kwargs=True))
            if self.by_layer:
                for i, layer in enumerate(decoder.layers):
                    hook = LayerDoor(i)
                    handles.append(layer.register_forward_pre_hook(hook.enter, with_kwargs=True))
                    handles.append(layer.register_forward_hook(hook.leave))
                Listener(self).attach(handles)
            self.tap.attach(handles)
        except BaseException:
            release(handles)
            raise
        return handles

    def use(self, pipeline: Pipeline) -> None:
        """From the next prompt on, act by ``pipeline``, which needs the same signals at the same layers."""
        self.pipeline = pipeline
        self.tap.use(pipeline)
        self.decided = None

    @property
    def by_layer(self) -> bool:
        """Whether single decoder layers have to be looked after."""
        return bool(self.pipeline.layers("llm") or self.pipeline.layers("cache"))

    # ------------------------------------------------------------------ the multimodal model's own call

    def note_call(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            kwargs = inspect.signature(core.forward).bind_partial(*args, **kwargs).arguments
        encoded = kwargs.get("mm_encoder_outputs") or {}
        given = (encoded.get("image"), encoded.get("video"), *(kwargs.get(name) for name in PIXELS))
        pictures = next((x for x in given if x is not None), None)
        self.call = Call(kwargs.get("input_ids"), kwargs.get("inputs_embeds"), pictures, kwargs)

    def forget_call(self, core: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.call = self.plan = None

    # ------------------------------------------------------------------ in

    def enter(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.plan = None
        embeds, cache = kwargs.get("inputs_embeds"), given_cache(kwargs)
        if self.call is None or embeds is None:
            return None
        state = state_of(cache)
        batch, length = embeds.shape[:2]
        visual = video = torch.zeros(batch, length, dtype=torch.bool)
        if length > 1 and not (self.call.pictures is None and self.call.inputs_embeds is None):
            # without pictures a placeholder is only a token, such as one proposed by prompt lookup
            visual, video = self.family.placeholders(self.call.input_ids, self.call.inputs_embeds)
        shown = int(visual.sum())
        if state is None and length == 1:
            return None  # a step after a prompt that was not reduced
        past = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
        encoded = self.tap.take(shown, batch, continues=past > 0) if shown else None
        images = self._locate(visual, video, encoded)
        if not images and length > 1 and self.call.pictures is None and self.call.inputs_embeds is not None:
            warnings.warn(
                "inputs_embeds came without pixel_values: image features among them cannot be told from text and are not "
                "reduced. Pass input_ids and pixel_values to let the wrapped model encode its images itself.",
                stacklevel=2,
            )
        mask = self.call.arguments.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = kwargs.get("attention_mask")
        real, past_real, counts = real_columns(mask, embeds, past, continues=state is not None)
        depth = decoder.config.num_hidden_layers
        plan = self.plan = Plan(
            decoder,
            self.pipeline,
            cache,
            Packing.untouched(real, counts),
            [past_real] * depth if state is None else state.real,
            [None] * depth if state is None else state.shift,
            visual,
            offset=past,
        )
        plan.two_way = self.family.two_way(self.call.arguments, embeds) if length > 1 else None
        plan.windowed = self.family.windowed
        changed = False
        if images:
            merged = None
            if encoded is not None:
                plan.tower_values, plan.repeat, merged = encoded.values, encoded.repeat, encoded.state
            plan.behind = [item.behind for item in images]
            plan.groups = group_images((item.image for item in images), embeds.device)
            plan.recalled = self._recall(kwargs)
            deep = kwargs.get("deepstack_visual_embeds")
            if deep is not None:
                plan.beside[0] = deepstack.spread(deep, kwargs["visual_pos_masks"], embeds)
            if merged is not None:
                assert encoded is not None
                changed = self._merged(plan, merged, encoded, embeds)
            changed |= self._projector(plan, embeds)
        plan.passive = state is None and not changed and not self._acts_later(plan)
        if plan.passive:
            return None
        kwargs = dict(kwargs)
        with self.pipeline.stopwatch(embeds.device):
            self._hand_over(plan, kwargs, changed)
        plan.groups = [group.settle() for group in plan.groups]
        if self.by_layer:
            kwargs[KEY] = plan
        return args, kwargs

    def _locate(self, visual: Tensor, video: Tensor, encoded: Encoded | None) -> list[Placed]:
        """The pictures of this chunk, in order."""
        if not bool(visual.any()):
            return []
        if encoded is not None:
            placed = place(visual, video, encoded.pictures, encoded.repeat)
        else:
            placed = self.family.assumed(visual)
        if self.family.tiled:
            placed = as_tiles(placed)
        return as_videos(placed) if self.images_as_video else placed

    def _merged(self, plan: Plan, state: TowerState, encoded: Encoded, embeds: Tensor) -> bool:
        """Drop the duplicates that a merged tower returned: one token stays for each of its rows."""
        history = state.patches(self.family.tower_prefix)
        methods = [method for method, step in self.pipeline.steps if step.stage == "encoder"]
        in_order = all(method.output_order == "raster" for method in methods)
        policy: PositionPolicy = "renumber" if any(method.policy == "renumber" for method in methods) else "keep"
        groups: list[ImageGroup] = []
        for group in plan.groups:
            pictures = [encoded.pictures[i] for m in group.members for i in plan.behind[m]]
            if any(picture.pooled for picture in pictures):
                raise ValueError(
                    f"method={methods[0].name!r} merges patches inside the vision encoder, but this "
                    f"{self.family.model.config.model_type} model pools the patches of this {pictures[0].medium} after "
                    "the encoder, so merged ones cannot be told apart; use a method of stage 'projector' or 'llm'"
                )
            rows = [[r for i in plan.behind[m] for r in encoded.rows[i]] for m in group.members]
            groups += merged_group(group.showing(embeds, beside=plan.beside.get(0)), history, rows, in_order, policy)
        plan.repack(0, groups)
        plan.groups = groups
        return True

    def _projector(self, plan: Plan, embeds: Tensor) -> bool:
        """Carry out the projector steps; whether anything changed."""
        if not self.pipeline.at("projector"):
            return False
        # tokens that a merged tower left behind come with their features
        beside = plan.beside.get(0)
        shown = [g if g.features is not None else g.showing(embeds, beside=beside) for g in plan.groups]
        groups, changed = plan.run("projector", None, shown)
        if changed:
            with self.pipeline.stopwatch(embeds.device):
                plan.repack(0, groups)
        plan.groups = groups
        return changed

    def _uses_cache(self, kwargs: dict[str, Any]) -> bool:
        use_cache = kwargs.get("use_cache")
        return given_cache(kwargs) is not None or bool(
            self.family.decoder.config.use_cache if use_cache is None else use_cache
        )

    def _recall(self, kwargs: dict[str, Any]) -> dict[Any, list[Reduction]]:
        """Decisions made for this very prompt, when it now comes again, grown, because no cache is used."""
        decided, call = self.decided, self.call
        self.decided = None
        if decided is None or call is None or call.input_ids is None or self._uses_cache(kwargs):
            return {}
        known = decided.input_ids
        again = call.pictures is decided.pictures and call.input_ids.shape[1] > known.shape[1]
        if again and torch.equal(call.input_ids[:, : known.shape[1]], known):
            self.decided = decided
            return decided.decisions
        return {}

    def _acts_later(self, plan: Plan) -> bool:
        later = [method for method, step in self.pipeline.steps if step.stage in ("llm", "cache")]
        return any(acts(method, group) for method in later for group in plan.groups)

    def _hand_over(self, plan: Plan, kwargs: dict[str, Any], changed: bool) -> None:
        """Replace every argument of the decoder that has a column per token."""
        embeds, mask, cache = kwargs["inputs_embeds"], kwargs.get("attention_mask"), plan.cache
        batch, length = embeds.shape[:2]
        packing, decoder = plan.packings[0], self.family.decoder

        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(length, device=embeds.device)[None] + plan.offset
        if positions.ndim == 3 and positions.shape[0] == 4:
            positions = positions[1:]  # the first of four rows only serves to detect packed sequences
        positions = positions.expand(*positions.shape[:-2], batch, length)
        if changed:
            columns = carried(packing, plan.groups)
            positions = positions.gather(-1, columns.expand(*positions.shape[:-2], -1, -1))
            for name, value in kwargs.items():
                aligned = isinstance(value, Tensor) and value.shape[:2] == (batch, length)
                if aligned and name not in ("inputs_embeds", "attention_mask", "position_ids"):
                    kwargs[name] = take_rows(value, packing.order)
            embeds = kwargs["inputs_embeds"] = write(take_rows(embeds, packing.order), packing, plan.groups, "features")
            if plan.beside:
                plan.beside[0] = write(take_rows(plan.beside[0], packing.order), packing, plan.groups, "companions")
        if plan.beside:
            deepstack.hand_over(plan, kwargs)
        plan.positions = positions
        if any(group.renumbered for group in plan.groups):
            plan.renumber(0, torch.arange(packing.width, device=embeds.device).expand(batch, -1))
        ids = plan.ids(0)
        kwargs["position_ids"] = positions if ids is None else ids

        if cache is None and self._uses_cache(kwargs):
            cache = plan.cache = DynamicCache(config=decoder.config)
            kwargs[cache_argument(type(decoder).forward)] = cache
        visible: Any = plan.visible(0)
        if visible is None and cache is None:
            # without a mask and without a cache, gaps between position ids would be taken for packed sequences
            visible = torch.ones(batch, packing.width, dtype=torch.bool, device=embeds.device)
        if plan.two_way is not None or (mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2)):
            kinds = {layer_type(decoder.config, i): i for i in reversed(range(plan.depth))}
            made = {kind: plan.mask(first, embeds) for kind, first in kinds.items()}
            first = made[layer_type(decoder.config, 0)]
            visible = made if isinstance(mask, dict) else visible if first is None else first
        kwargs["attention_mask"] = visible

    # ------------------------------------------------------------------ out

    def leave(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        plan = self.plan
        if plan is None:
            return None
        hidden = output[0]
        if not plan.passive:
            for layer in range(plan.depth):
                plan.visible(layer)
            with self.pipeline.stopwatch(hidden.device):
                plan.trim_cache(hidden)
            if plan.cache is not None:
                adopt(plan.cache, plan.state())
            elif self.decided is None and self.call is not None and self.call.input_ids is not None:
                self.decided = Decided(self.call.input_ids, self.call.pictures, plan.decisions)
        self._record(plan, output, hidden)
        final = plan.packing(plan.depth - 1)
        if not final.moved or self.output_length == "reduced":
            return None
        full = final.fill(hidden)
        if isinstance(output, tuple):
            return (full, *output[1:])
        output["last_hidden_state"] = full
        return output

    def _record(self, plan: Plan, output: Any, hidden: Tensor) -> None:
        """Note trace and cost of a prompt; decode steps and text that continues a shortened prompt leave them alone."""
        if not plan.groups and plan.offset:
            return
        step = plan.repeat
        self.trace = Trace(plan.groups, plan.visual, plan.offset, self.pipeline.layers("llm"), step)
        images = self.trace.images_per_sample()
        shape = DecoderShape.of(self.family.decoder.config)
        layers = range(plan.depth)
        widths = [plan.packing(i).counts for i in layers]
        before = [plan.past(i) for i in layers]
        flops = sum(shape.prefill_flops([widths[i][b] for i in layers], before) for b in range(len(plan.length_in)))
        whole = sum(shape.prefill_flops([n] * plan.depth, [plan.offset] * plan.depth) for n in plan.length_in)
        cache = plan.cache if plan.cache is not None else returned_cache(output)
        held = num_bytes(cache) if isinstance(cache, Cache) else 0
        batch, length = plan.visual.shape
        self.report = Report(
            tokens_in=[[n for n, _ in row] for row in images],
            tokens_kept=[[k for _, k in row] for row in images],
            tokens_at_layer=[plan.visual_counts[plan.start(i)][::step] for i in layers],
            flops=flops,
            flops_unreduced=whole,
            kv_bytes=held,
            kv_bytes_unreduced=held and batch * (plan.offset + length) * shape.token_kv_bytes(hidden.element_size()),
            methods=tuple(method.name for method in self.pipeline.methods),
            stopwatch=self.pipeline.stopwatch.lap(),
        )


def release(handles: list[Any]) -> None:
    """Remove ``handles``, latest first."""
    for handle in reversed(handles):
        handle.remove()
    handles.clear()
