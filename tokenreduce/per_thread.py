"""Attributes with a value of their own in every thread: what one call of a model notes, another must not see."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

T = TypeVar("T")


class _Values(threading.local):
    def __init__(self) -> None:
        self.of: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


_VALUES = _Values()


class PerThread(Generic[T]):
    """A class attribute that holds ``make()`` until a thread sets it, for that thread alone.

    Values are kept beside the object, not in it: a copied or unpickled object starts anew.

    Example:
        >>> class Counter:
        ...     count = PerThread(int)
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self.make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, obj: None, owner: type) -> PerThread[T]: ...

    @overload
    def __get__(self, obj: Any, owner: type) -> T: ...

    def __get__(self, obj: Any, owner: type) -> Any:
        if obj is None:
            return self
        values = _VALUES.of.setdefault(obj, {})
        if self.name not in values:
            values[self.name] = self.make()
        return values[self.name]

    def __set__(self, obj: Any, value: T) -> None:
        _VALUES.of.setdefault(obj, {})[self.name] = value


def nothing() -> None:
    """What a ``PerThread`` attribute is that starts as None."""
