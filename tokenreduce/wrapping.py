"""Wrap, scope, unwrap: a method and a model family joined on one model, in place, and taken apart again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tokenreduce.attachment import SLOT, Attachment, attachment_of, found_on, is_wrapped, plain_model
from tokenreduce.method import Method
from tokenreduce.request_budgets import Keep, with_budget
from tokenreduce.targets import solved, wished
from tokenreduce.tested import warn_of_untested
from tokenreduce.wrap_arguments import chosen

if TYPE_CHECKING:
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)


def wrap(
    model: Model,
    *methods: str | Method | type[Method],
    output_length: Literal["full", "reduced"] = "full",
    images_as_video: bool = False,
    family: str | None = None,
    speedup: float | None = None,
    flops: float | None = None,
    prefill_ms: float | None = None,
    measured: bool = False,
    inputs: Any = None,
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
        speedup, flops, prefill_ms, measured: in place of ``keep``, what it is to reach on the prompt ``inputs``, one like those
            to come: ``tr.budget_for`` finds the budget, the report says what was asked for and what came of it.
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
    target = wished(made, parameters, inputs, speedup=speedup, flops=flops, prefill_ms=prefill_ms, measured=measured)
    plain = plain_model(model)
    if found_on(plain) is not None:
        names = ", ".join(m.name for m in attachment_of(plain).hooks.pipeline.methods)
        raise ValueError(
            f"model is wrapped already (with {names}); call tr.unwrap(model) first, or compose methods in one call: "
            "tr.wrap(model, method_a, method_b)"
        )
    if target is not None:
        budget: dict[str, Any] = {"keep": solved(target, model, inputs, made[0], images_as_video)}
        made = [dataclasses.replace(made[0], **budget)]
    attachment = Attachment(plain, made, output_length, images_as_video, family)
    attachment.target = "" if target is None else str(target)
    plain.__dict__[SLOT] = attachment
    return model


def unwrap(model: Model) -> Model:
    """Take every hook off ``model``; it is bit for bit what it was. Returns the same object.

    Errors: ``ValueError`` when the model is not wrapped.
    """
    plain = plain_model(model)
    attachment_of(plain).detach()
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
def budget(model: nn.Module, keep: Keep | Sequence[Keep]) -> Iterator[None]:
    """Another budget for the length of a ``with`` block, without wrapping again.

    Applies to every method of the model, in the thread that says so; scopes nest. A list has a budget for each sample of the
    calls inside; None is off: that request is not reduced. A call can say the same: ``model.generate(**inputs, tr_keep=64)``.
    Errors are those of ``wrap``; an invalid budget leaves the old one in place.

    Example: ``with tr.budget(model, keep=64): model.generate(**inputs)``, or ``keep=[0.25, None, 64]`` for a batch of three
    """
    active = attachment_of(model).hooks.active
    with active.exchanged(with_budget(active.now, keep)):
        yield
