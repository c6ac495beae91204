"""Hyper-parameters, checked: argument, value, what is allowed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any


def choice(argument: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument}={value!r}; allowed: {', '.join(map(repr, allowed))}")


def truth(argument: str, value: Any, *, none: bool = False) -> None:
    """True or False, or None where ``none``: the word "false" would count as true."""
    if not (isinstance(value, bool) or (none and value is None)):
        raise TypeError(f"{argument}={value!r}; allowed: True, False{', None' * none}")


def is_numbers(value: Any) -> bool:
    """Whether ``value`` is a tuple of numbers."""
    return isinstance(value, tuple) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in value)


def whole(argument: str, value: Any, least: int, more: str = "", *, none: bool = False) -> None:
    """An int from ``least`` on, or None where ``none``; ``more``: what it counts, and what the paper uses."""
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{argument}={value!r}; allowed: an int >= {least}{', or None' * none}{more}")


def at_most(argument: str, value: int | None, most: int, what: str) -> None:
    """An int up to ``most`` of ``what`` the model has; 0: how many is not known, and None: not asked."""
    if value is not None and 0 < most < value:
        raise ValueError(f"{argument}={value}; allowed: 1 to {most}, {what}")


def ascending(argument: str, value: Any, least: int, hint: str) -> None:
    """Layers or blocks: at least one, ints from ``least`` on, each once."""
    whole = isinstance(value, tuple) and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
    if not whole or not value or any(b <= a for a, b in pairwise((least - 1, *value))):
        raise ValueError(f"{argument}={value!r}; allowed: a tuple of ascending ints >= {least}. {hint}")


def in_range(argument: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument}={value!r} is a {type(value).__name__}; allowed: a number in [{low:g}, {high:g}]")
    if not low <= value <= high:
        raise ValueError(f"{argument}={value!r} is outside [{low:g}, {high:g}]")


def fraction(argument: str, value: float | None, more: str = "", *, none: bool = False) -> None:
    """A number in (0, 1], or None where ``none``; ``more``: what else is to be said of it."""
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{argument}={value!r} is a {type(value).__name__}; allowed: a number in (0, 1]{', or None' * none}"
        )
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{argument}={value!r} is outside (0, 1]{more}")
