"""Listening to a method of one model instance, where no module is called that a hook could sit on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any


class Shadow:
    """Stands before the method ``name`` of ``owner``, in the instance, until ``remove``.

    An object of its own, so that a copied or unpickled model has shadows of its own.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self.owner = owner
        self.name = name
        self.covered = owner.__dict__.get(name)  # another library's
        self.active = True
        owner.__dict__[name] = self

    @property
    def original(self) -> Callable[..., Any]:
        """The method as it was."""
        return getattr(type(self.owner), self.name).__get__(self.owner) if self.covered is None else self.covered

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def __code__(self) -> CodeType:
        """Of the method, for tools that look at how it is written."""
        return inspect.unwrap(self.original).__code__

    def remove(self) -> None:
        """Take the shadow away; where another library has put its own over it since, it stays and does nothing."""
        if self.owner.__dict__.get(self.name) is not self:
            self.active = False
        elif self.covered is None:
            del self.owner.__dict__[self.name]
        else:
            self.owner.__dict__[self.name] = self.covered


class MethodCall(Shadow):
    """Tells ``heard`` the arguments of every call, by name, and calls the method."""

    def __init__(self, owner: Any, name: str, heard: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(owner, name)
        self.heard = heard

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.active:
            bound = inspect.signature(self.original).bind(*args, **kwargs)
            bound.apply_defaults()
            self.heard(dict(bound.arguments))
        return self.original(*args, **kwargs)


@contextmanager
def all_or_none() -> Iterator[list[Any]]:
    """A list for handles; what it holds is removed again when the ``with`` block raises."""
    handles: list[Any] = []
    try:
        yield handles
    except BaseException:
        release(handles)
        raise


def release(handles: list[Any]) -> None:
    """Remove ``handles``, latest first."""
    for handle in reversed(handles):
        handle.remove()
    handles.clear()
