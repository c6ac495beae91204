"""What ``wrap`` is given, before anything is attached: methods made from it, and errors that show the right call."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tokenreduce.method import Method
from tokenreduce.registry import make


def chosen(methods: Sequence[Any], parameters: Mapping[str, Any]) -> list[Method]:
    """Instances of ``methods``. Warns of a budget of one token, which is seldom meant.

    Errors: ``TypeError`` for no method, a list of them, a budget without a name, parameters of nobody in particular.
    """
    if not methods:
        raise TypeError(
            "wrap() needs at least one method after the model, for example tr.wrap(model, 'hiprune', keep=0.25)"
        )
    for place, given in enumerate(methods):
        if isinstance(given, (list, tuple, set, frozenset)):
            raise TypeError(
                f"methods={given!r} is a {type(given).__name__}; allowed: methods one after another, in the order a token meets "
                f"them, for example tr.wrap(model, {', '.join(map(_called, given)) or _called('fastv')})"
            )
        if place and (isinstance(given, numbers.Real) or given is None):
            first = methods[0] if isinstance(methods[0], str) else "hiprune"
            keep = given if isinstance(given, numbers.Real) and not isinstance(given, bool) else 0.25
            raise TypeError(
                f"methods={given!r} is no method; a budget is given by its name: tr.wrap(model, {first!r}, keep={keep})"
            )
    if parameters and len(methods) > 1:
        raise TypeError(
            f"parameters {sorted(parameters)} are ambiguous for {len(methods)} methods; give each method its own, for "
            "example tr.wrap(model, tr.FasterVLM(keep=64), tr.FastV(layer=2, keep=0.5))"
        )
    made = [make(method, **parameters) for method in methods]
    if any(isinstance(method.keep, int) and method.keep == 1 for method in made):
        warnings.warn(
            "keep=1 is one token per image; for every token write keep=1.0, for a hundredth keep=0.01", stacklevel=3
        )
    return made


def _called(method: Any) -> str:
    """How a method of a list is written where each has parameters of its own."""
    if isinstance(method, str):
        try:
            return f"tr.{type(make(method)).__name__}(keep=0.5)"
        except (TypeError, ValueError):
            return repr(method)
    return f"tr.{method.__name__}(keep=0.5)" if isinstance(method, type) else repr(method)
