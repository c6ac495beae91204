"""What is attached to one model, and what can be read off it: the verbs of ``tokenreduce.wrapping`` stand on this."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from tokenreduce.alternatives import instead_of
from tokenreduce.best_known import decided
from tokenreduce.method import Method
from tokenreduce.pipeline import Pipeline
from tokenreduce.request_budgets import for_call

if TYPE_CHECKING:
    from torch import nn

    from tokenreduce.cost import Report
    from tokenreduce.traces import Trace

SLOT = "_tokenreduce"
MARK = "_tokenreduce_hooked"  # on every module that hooks of one wrapped model sit on


class Attachment:
    """What is attached to one model: its family, the pipeline, and every hook."""

    def __init__(
        self,
        model: nn.Module,
        methods: list[Method],
        output_length: Literal["full", "reduced"],
        images_as_video: bool,
        family: str | None,
    ) -> None:
        from tokenreduce.adapters.encoders.base import EncoderFamily
        from tokenreduce.adapters.hooks.encoder_alone import EncoderHooks
        from tokenreduce.adapters.hooks.joining import hooks_for
        from tokenreduce.adapters.hooks.larger_model import refuse_tower_of_a_larger_model
        from tokenreduce.adapters.hooks.model_hooks import ModelHooks
        from tokenreduce.adapters.registry import family_of
        from tokenreduce.adapters.resemblance import family_like

        self.target = ""  # what was asked for in place of a budget
        self.family = family_of(model) if family is None else family_like(model, family)
        self.facts = self.family.offers()
        if images_as_video:  # counts then refer to a video of any length
            self.facts = dataclasses.replace(self.facts, tokens_per_image=None)
        methods, self.choice = decided(methods, self.facts, images_as_video)  # what auto is, and why
        try:
            pipeline = Pipeline(methods, self.facts)
        except ValueError as error:
            others = instead_of(methods, self.facts)
            if not others:
                raise
            raise ValueError(f"{error}. Methods that fit this model: {', '.join(others)}") from error
        self.marked = self.family.hooked
        for module in self.marked:
            if MARK in module.__dict__:
                own = "this" if module is model else f"the {type(module).__name__} of this"
                raise ValueError(
                    f"{own} {type(model).__name__} is part of a model that is wrapped already; "
                    "call tr.unwrap on that one first"
                )
        self.hooks: EncoderHooks | ModelHooks
        if isinstance(self.family, EncoderFamily):
            refuse_tower_of_a_larger_model(model)
            self.hooks = EncoderHooks(self.family, pipeline, output_length)
        else:
            self.hooks = hooks_for(self.family)(self.family, pipeline, output_length, images_as_video)
        self.hooks.active.asked = for_call
        self.handles = self.hooks.attach()
        for module in self.marked:
            module.__dict__[MARK] = True

    def detach(self) -> None:
        from tokenreduce.adapters.hooks.method_calls import release

        release(self.handles)
        for module in self.marked:
            del module.__dict__[MARK]


@contextmanager
def attached(model: Any, methods: Sequence[Method], images_as_video: bool = False) -> Iterator[None]:
    """``methods`` on ``model`` for the length of a ``with`` block. Errors: those of ``tr.wrap``."""
    plain = plain_model(model)
    plain.__dict__[SLOT] = attachment = Attachment(plain, list(methods), "full", images_as_video, None)
    try:
        yield
    finally:
        attachment.detach()
        del plain.__dict__[SLOT]


def is_wrapped(model: nn.Module) -> bool:
    """Whether ``model`` carries a reduction."""
    return found_on(plain_model(model)) is not None


def trace(model: nn.Module) -> Trace:
    """Where the visual tokens of the last prompt went. Errors: ``ValueError`` before the first prompt."""
    attachment = attachment_of(model)
    found = attachment.hooks.done.trace
    if found is None:
        raise ValueError("no trace yet: run the wrapped model on a prompt first, e.g. model.generate(**inputs)")
    found.choice = attachment.choice
    return found


def report(model: nn.Module) -> Report:
    """What the last prompt cost. Errors: ``ValueError`` before the first prompt."""
    attachment = attachment_of(model)
    found = attachment.hooks.done.report
    if found is None:
        raise ValueError("no report yet: run the wrapped model on a prompt first, e.g. model.generate(**inputs)")
    return dataclasses.replace(found, target=attachment.target, choice=attachment.choice)


def attachment_of(model: Any) -> Attachment:
    """What is attached to ``model``. Errors: ``ValueError`` when it is not wrapped."""
    found = found_on(plain_model(model))
    if found is None:
        raise ValueError("model is not wrapped; call tr.wrap(model, 'hiprune', keep=0.25) first")
    return found


def plain_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if callable(get_base) else model


def found_on(plain: Any) -> Attachment | None:
    """What is attached to ``plain``, if anything is."""
    return getattr(plain, "__dict__", {}).get(SLOT)
