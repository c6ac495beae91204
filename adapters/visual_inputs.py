"""What families tell and hooks carry out: pictures as a tower encoded them, and the calls that say how it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tokenreduce.groups import Image
from tokenreduce.layout import Layout, Medium

#: in the sequence of the decoder, in that of a text encoder before it, or in rows beside it, which it attends to across
Join = Literal["sequence", "text_encoder", "cross_attention"]


@dataclass
class TowerCall:
    """One pass of a tower.

    Attributes:
        tower: which of the family's towers.
        rows: images in its batch; 0 in a tower that packs pictures.
        arguments: what it was called with, by name, pixels left out, and what the family noted of the way there and on.
        shape: of the pixels.
        asked: arguments of the model's own call whose prompt shows the pictures; empty until then.
    """

    tower: int
    rows: int
    arguments: dict[str, Any]
    shape: tuple[int, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    _numbers: dict[str, list[Any]] = field(default_factory=dict)

    def numbers(self, name: str) -> list[Any]:
        """Argument ``name``, a tensor, as nested lists; a device is waited for once."""
        if name not in self._numbers:
            self._numbers[name] = self.arguments[name].tolist()
        return self._numbers[name]


@dataclass(frozen=True)
class Picture:
    """An image or video as one pass of the tower encoded it.

    Attributes:
        layout: of its tokens.
        columns: placeholders it takes in the prompt.
        tokens: placeholders, counted from 0, that hold its tokens; None: all of them. The others are row newlines.
        rows: how many rows of the tower's batch it takes (views, frames); 0 in a tower that packs pictures.
        medium: None where the pass does not tell; then images come before videos.
        pooled: whether several patches were joined in one token after the tower.
    """

    layout: Layout
    columns: int
    tokens: tuple[int, ...] | None = None
    rows: int = 1
    medium: Medium | None = "image"
    pooled: bool = False


class Placed(NamedTuple):
    """A picture found in a prompt: its tokens' columns, and which encoded pictures stand behind it."""

    image: Image
    behind: tuple[int, ...]


class NotedCall(NamedTuple):
    """A method of the model whose arguments tell how a tower is used.

    Attributes:
        owner: the object, ``method`` the name of its method.
        note: from the arguments of a call, by name, to what is added to ``TowerCall.arguments``.
        ahead: whether this is about the tower's next pass, or else about its latest one.
    """

    owner: Any
    method: str
    note: Callable[[dict[str, Any]], dict[str, Any]]
    ahead: bool


class Projection(NamedTuple):
    """Where on the way from a tower's blocks to the prompt one row is one token.

    Attributes:
        within: the module that holds all weights they meet; ``entered``, the one whose input they are, (M, R, C) or (R, C).
        run: makes features (..., D) of rows (..., C).
        layers: the modules ``run`` consists of, where that is a linear layer, a function of single numbers, and a linear
            layer; else None.
    """

    within: Any
    entered: Any
    run: Callable[[Any], Any]
    layers: tuple[Any, Any, Any] | None = None

    @classmethod
    def through(cls, within: Any, *layers: Any) -> Projection:
        """That of rows which enter the first of three ``layers``: a linear one, a function of single numbers, a linear one."""
        first, act, second = layers
        return cls(within, first, lambda rows: second(act(first(rows))), (first, act, second))
