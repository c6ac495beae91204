"""What the hooks on every vision-language model share, wherever its pictures join the text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.call_scope import CallScopes, ScopedMethod
from tokenreduce.adapters.hooks.checks import refuse_paged_cache
from tokenreduce.adapters.hooks.encoding_cost import EncodingCost, total
from tokenreduce.adapters.hooks.last_done import LastDone
from tokenreduce.adapters.hooks.method_calls import MethodCall, all_or_none
from tokenreduce.adapters.hooks.picture_pass import PicturePass
from tokenreduce.adapters.hooks.prompt_pictures import Call, PromptPictures, read_ahead
from tokenreduce.adapters.hooks.tower_passes import Encoded
from tokenreduce.adapters.hooks.vision_tower import VisionTower
from tokenreduce.adapters.upstream.model import PAGED, encoded_ahead, pixels_of
from tokenreduce.adapters.visual_inputs import Placed
from tokenreduce.groups import group_images
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.pipeline import ActivePipeline, Pipeline

OutputLength = Literal["full", "reduced"]


class ModelHooks:
    """Open a scope around each call, note what it shows, listen to the towers, hold what was last done.

    A subclass hooks the place where pictures join the text.
    """

    call = PerThread[Call | None](nothing)
    current = PerThread[Any](nothing)  # what is known of the pass that is under way
    #: of a video that goes on over several calls, what each method noted of it so far; None: videos come whole
    going_on = PerThread[dict[int, Mapping[str, Tensor]] | None](nothing)

    def __init__(
        self,
        family: Family,
        pipeline: Pipeline,
        output_length: OutputLength = "full",
        images_as_video: bool = False,
    ) -> None:
        if images_as_video and (pipeline.layers("encoder") or pipeline.enters is not None):
            raise ValueError(
                "images_as_video=True shows the images of a sample together, which a method inside or before the encoder "
                "cannot use; leave it out, or leave out that method"
            )
        self.family = family
        self.images_as_video = images_as_video
        self.active = ActivePipeline(pipeline)
        self.output_length = output_length
        self.scopes = CallScopes()
        self.tower = VisionTower(family, self.active, self.scopes)
        self.pictures = PromptPictures(family, self.active, self.scopes)
        self.done = LastDone()

    @property
    def pipeline(self) -> Pipeline:
        return self.active.now

    def attach(self) -> list[Any]:
        """Install every hook; returns their handles. Nothing stays behind when one of them fails."""
        model, core = self.family.model, self.family.core
        with all_or_none() as handles:
            for owner, name in ((model, "generate"), (model, "forward"), (core, "forward")):
                if hasattr(owner, name) and not isinstance(owner.__dict__.get(name), ScopedMethod):
                    handles.append(ScopedMethod(owner, name, self.scopes, self.active))
            handles += [MethodCall(model, name, refuse_paged_cache) for name in PAGED if hasattr(model, name)]
            handles.append(core.register_forward_pre_hook(self.note_call, with_kwargs=True))
            handles.append(core.register_forward_hook(self.forget_call, always_call=True))
            self.hook(handles)
            self.tower.attach(handles)
            self.pictures.attach(handles)
        return handles

    def hook(self, handles: list[Any]) -> None:
        """Append to ``handles`` the hooks on the place where pictures join the text."""
        raise NotImplementedError

    def refuse_text(self, why: str) -> None:
        """Refuse methods that look at the text; ``why`` says what this kind of model does."""
        for method, step in self.pipeline.steps:
            if any(signal.part == "llm" for signal in step.needs):
                raise ValueError(
                    f"method={method.name!r} reads the text of the prompt, or what its tokens attend to, but a "
                    f"{self.family.model.config.model_type} model {why}; use a method that looks at the picture alone"
                )

    def note_call(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            kwargs = inspect.signature(core.forward).bind_partial(*args, **kwargs).arguments
        given = (*encoded_ahead(kwargs), *pixels_of(kwargs))
        pictures = next((x for x in given if x is not None), None)
        ids = kwargs.get("input_ids")
        read = () if pictures is None else read_ahead(ids, kwargs.get("attention_mask"))
        self.call = Call(ids, kwargs.get("inputs_embeds"), pictures, kwargs, read)

    def forget_call(self, core: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.call = self.current = None

    def show(
        self, reduced: PicturePass, images: Sequence[Placed], encoded: Encoded | None, device: torch.device
    ) -> None:
        """Give a pass its pictures, and what is known of how they were encoded."""
        reduced.behind = [item.behind for item in images]
        reduced.questions = self.scopes.questions([item.image.sample for item in images], len(reduced.visual))
        reduced.groups = group_images((item.image for item in images), device)
        if self.going_on is not None:
            reduced.groups = [replace(group, notes=self.going_on) for group in reduced.groups]
        if encoded is not None:
            reduced.tower_values, reduced.repeat = encoded.values, encoded.repeat
            again = EncodingCost([])
            reduced.project = self.tower.rows.projector(again)
            reduced.encoding = partial(total, [*encoded.costs, again] if encoded.costs else [])
