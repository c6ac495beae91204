"""Listening to a method of one model instance, where no module is called that a hook could sit on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class MethodCall:
    """Shadows the method ``name`` of ``owner`` until ``remove``; tells ``heard`` the arguments and calls the method.

    An object of its own, so that a copied model has interceptors of its own.
    """

    def __init__(self, owner: Any, name: str, heard: Callable[[dict[str, Any]], None]) -> None:
        self.owner = owner
        self.name = name
        self.heard = heard
        self.original = getattr(owner, name)
        owner.__dict__[name] = self

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(self.original).bind(*args, **kwargs)
        bound.apply_defaults()
        self.heard(dict(bound.arguments))
        return self.original(*args, **kwargs)

    def remove(self) -> None:
        del self.owner.__dict__[self.name]


def release(handles: list[Any]) -> None:
    """Remove ``handles``, latest first."""
    for handle in reversed(handles):
        handle.remove()
    handles.clear()
