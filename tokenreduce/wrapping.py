"""Wrap, scope, unwrap: a method and a model family joined on one model, in place, and taken apart again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tokenreduce.alternatives import instead_of
from tokenreduce.method import Method
from tokenreduce.pipeline import Pipeline
from tokenreduce.tested import warn_of_untested
from tokenreduce.wrap_arguments import chosen

if TYPE_CHECKING:
    from torch import nn

    from tokenreduce.cost import Report
    from tokenreduce.traces import Trace

    Model = TypeVar("Model", bound=nn.Module)

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

        self.family = family_of(model) if family is None else family_like(model, family)
        self.facts = self.family.offers()
        if images_as_video:  # counts then refer to a video of any length
            self.facts = dataclasses.replace(self.facts, tokens_per_image=None)
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
                raise ValueError(
                    f"the {type(module).__name__} of this {type(model).__name__} is part of a model that is wrapped already; "
                    "call tr.unwrap on that one first"
                )
        self.hooks: EncoderHooks | ModelHooks
        if isinstance(self.family, EncoderFamily):
            refuse_tower_of_a_larger_model(model)
            self.hooks = EncoderHooks(self.family, pipeline, output_length)
        else:
            self.hooks = hooks_for(self.family)(self.family, pipeline, output_length, images_as_video)
        self.handles = self.hooks.attach()
        for module in self.marked:
            module.__dict__[MARK] = True

    def detach(self) -> None:
        from tokenreduce.adapters.hooks.method_calls import release

        release(self.handles)
        for module in self.marked:
            del module.__dict__[MARK]


def wrap(
    model: Model,
    *methods: str | Method | type[Method],
    output_length: Literal["full", "reduced"] = "full",
    images_as_video: bool = False,
    family: str | None = None,
    **parameters: Any,
) -> Model:
    """Make ``model`` run on fewer visual tokens, in place.

    ``model(**inputs)`` and ``model.generate(**inputs)`` stay as they are; embeddings, masks, positions and KV cache are
    really shorter. Several methods compose: give them as instances, in the order a token should meet them.

    Args:
        model: a vision-language model of a supported family (``tr.families()``), PEFT-wrapped or not.
        methods: names (``tr.methods()``), classes or instances.
        output_length: ``full`` returns logits for every column of the prompt, the dropped ones repeating their
            predecessor; ``reduced`` leaves them out (for profiling).
        images_as_video: treat the images of a sample as the frames of one video, for temporal methods on models that take
            frames as images; counts and fractions then refer to the whole video.
        family: ``like:NAME`` for a model of an unknown type that is built like those of type NAME (``like:llava``: same
            attributes, same placeholders); what its family reads is looked for in the model first.
        parameters: hyper-parameters of the method, such as ``keep``, when there is a single one.

    Returns:
        The same object.

    Errors: ``TypeError`` / ``ValueError`` for unknown methods, families or parameters, a budget out of range, a signal
        the model cannot give, or a model that is wrapped already; raised before anything is attached.

    Example:
        >>> import tokenreduce as tr
        >>> from tokenreduce.eval import demo
        >>> model, processor = demo.load()
        >>> _ = tr.wrap(model, "hiprune", keep=0.25)
        >>> tr.is_wrapped(tr.unwrap(model))
        False
    """
    if output_length not in ("full", "reduced"):
        raise ValueError(f"output_length={output_length!r}; allowed: 'full', 'reduced'")
    warn_of_untested()
    made = chosen(methods, parameters)
    plain = _plain(model)
    if _attachment(plain) is not None:
        names = ", ".join(m.name for m in _attached(plain).hooks.pipeline.methods)
        raise ValueError(
            f"model is wrapped already (with {names}); call tr.unwrap(model) first, or compose methods in one call: "
            "tr.wrap(model, method_a, method_b)"
        )
    attachment = Attachment(plain, made, output_length, images_as_video, family)
    plain.__dict__[SLOT] = attachment
    return model


def unwrap(model: Model) -> Model:
    """Take every hook off ``model``; it is bit for bit what it was. Returns the same object.

    Errors: ``ValueError`` when the model is not wrapped.
    """
    plain = _plain(model)
    _attached(plain).detach()
    del plain.__dict__[SLOT]
    return model


@contextmanager
def wrapped(model: Model, *methods: str | Method | type[Method], **parameters: Any) -> Iterator[Model]:
    """``wrap`` for the length of a ``with`` block; unwrapped at its end, also when it raises."""
    wrap(model, *methods, **parameters)
    try:
        yield model
    finally:
        if is_wrapped(model):
            unwrap(model)


@contextmanager
def budget(model: nn.Module, keep: float | int | str) -> Iterator[None]:
    """Another budget for the length of a ``with`` block, without wrapping again.

    Applies to every method of the model, in the thread that says so; scopes nest.
    Errors are those of ``wrap``; an invalid budget leaves the old one in place.

    Example: ``with tr.budget(model, keep=64): model.generate(**inputs)``
    """
    attachment = attachment_of(model)
    active = attachment.hooks.active
    before, outer = active.now, active.instead
    changed = Pipeline([dataclasses.replace(m, keep=keep) for m in before.methods], attachment.facts)
    places = [[(step.layer, step.needs) for _, step in p.steps if step.stage == "decode"] for p in (before, changed)]
    same = changed.listens == before.listens and places[0] == places[1]
    same = same and all(changed.layers(s) == before.layers(s) for s in ("llm", "cache"))
    inside = [(bool(p.layers("encoder")), p.enters) for p in (before, changed)]
    if not same or inside[0] != inside[1]:
        raise ValueError(f"keep={keep} would move a method to other layers; unwrap and wrap again with it")
    changed.stopwatch = before.stopwatch
    active.instead = changed
    try:
        yield
    finally:
        active.instead = outer


def is_wrapped(model: nn.Module) -> bool:
    """Whether ``model`` carries a reduction."""
    return _attachment(_plain(model)) is not None


def trace(model: nn.Module) -> Trace:
    """Where the visual tokens of the last prompt went. Errors: ``ValueError`` before the first prompt."""
    found = attachment_of(model).hooks.done.trace
    if found is None:
        raise ValueError("no trace yet: run the wrapped model on a prompt first, e.g. model.generate(**inputs)")
    return found


def report(model: nn.Module) -> Report:
    """What the last prompt cost. Errors: ``ValueError`` before the first prompt."""
    found = attachment_of(model).hooks.done.report
    if found is None:
        raise ValueError("no report yet: run the wrapped model on a prompt first, e.g. model.generate(**inputs)")
    return found


def attachment_of(model: Any) -> Attachment:
    """What is attached to ``model``. Errors: ``ValueError`` when it is not wrapped."""
    return _attached(_plain(model))


def _plain(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if callable(get_base) else model


def _attachment(plain: Any) -> Attachment | None:
    return getattr(plain, "__dict__", {}).get(SLOT)


def _attached(plain: Any) -> Attachment:
    found = _attachment(plain)
    if found is None:
        raise ValueError("model is not wrapped; call tr.wrap(model, 'hiprune', keep=0.25) first")
    return found
