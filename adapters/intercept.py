"""Listening to a method of one model instance, where no module is called that a hook could sit on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenreduce.adapters.tower import TowerTap


class Intercept:
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


def frames_of_videos(core: Any, tap: TowerTap) -> list[Intercept]:
    """Interceptors that announce how many frames the videos have that the tower is about to see."""
    return [Intercept(core, "get_video_features", Frames(tap))] if hasattr(core, "get_video_features") else []


class Frames:
    """Announces how many frames the videos have that the tower is about to see."""

    def __init__(self, tap: TowerTap) -> None:
        self.tap = tap

    def __call__(self, arguments: dict[str, Any]) -> None:
        pixels = next(iter(arguments.values()))  # pixel_values_videos, or pixel_values before 5.18
        self.tap.announce({"frames": pixels.shape[1]})
