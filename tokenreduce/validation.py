"""Hyper-parameters, checked: argument, value, what is allowed."""

from __future__ import annotations

from typing import Any


def choice(argument: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument}={value!r}; allowed: {', '.join(map(repr, allowed))}")


def in_range(argument: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument}={value!r} is a {type(value).__name__}; allowed: a number in [{low:g}, {high:g}]")
    if not low <= value <= high:
        raise ValueError(f"{argument}={value!r} is outside [{low:g}, {high:g}]")
