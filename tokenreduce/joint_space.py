"""A space that rows of a vision tower share with texts, as training by contrast makes one, and the signal that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.signals import Signal, Where


class JointSpace:
    """Two functions into one space of E channels; equal to nothing but itself, and shared by what is copied.

    Attributes:
        name: of the model it belongs to, for messages.
        width: channels C of the tower's rows.
        image: rows (..., C) in, (..., E) out.
        text: a text in, (M, E) out, a row for each of the M segments that are read one by one.
        sign: 1, or -1 where rows of patches are known to be the farther from a text the more they show of it.
    """

    def __init__(
        self,
        name: str,
        width: int,
        image: Callable[[Tensor], Tensor],
        text: Callable[[str], Tensor],
        sign: Literal[1, -1] = 1,
    ) -> None:
        self.name, self.width, self.image, self.text, self.sign = name, width, image, text, sign

    def __repr__(self) -> str:
        return f"JointSpace({self.name!r})"

    def __deepcopy__(self, memo: object) -> JointSpace:
        return self

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[Tensor]:
        """Segments (M, E) of each of ``texts``, equal ones read once; an empty text has none."""
        found = {text: self.text(text)[: None if text.strip() else 0] for text in dict.fromkeys(texts)}
        return [found[text] for text in texts]


@dataclass(frozen=True)
class Question(Signal):
    """The words that the caller says each picture's sample asks (``tr.question``), in a ``space`` that it shares with rows of
    the tower: ``Rows`` of (B, M, E), M segments.
    """

    axis = "text"
    space: JointSpace

    @property
    def part(self) -> Where:
        return "llm"
