"""What happened to the visual tokens of an image, from source patches to survivors: one record per stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.tokens import Stage
from tokenreduce.uploading import uploaded

TENSORS = ("assign", "seats", "source", "role", "score")  # of a ``StageTrace``


@dataclass(frozen=True)
class StageTrace:
    """One image after one stage; inside a call, B images of one layout at once, with (B, ...) in front of every shape.

    Attributes:
        assign: (N0,) long, surviving row that stands for each original token; -1 when it is gone.
        seats: (K,) long, position in the ``input_ids`` row at which each survivor sits.
        source: (K,) long, original token each survivor sits at; -1 for a summary token.
        role: (N0,) long or None, what the method called each token; meanings in ``role_names``.
        score: (N0,) float or None, what the method ranked each token by; NaN for tokens that were gone before.
    """

    stage: Stage
    layer: int | None
    method: str
    assign: Tensor
    seats: Tensor
    source: Tensor
    role: Tensor | None
    role_names: tuple[str, ...]
    score: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> StageTrace:
        """The same with ``change`` made to every tensor."""
        made: dict[str, Any] = {name: change(x) for name in TENSORS if (x := getattr(self, name)) is not None}
        return replace(self, **made)

    @classmethod
    def stacked(cls, images: Sequence[StageTrace]) -> StageTrace:
        """Images of one layout, with as many tokens left of each, as one."""
        found = {
            name: torch.stack([getattr(image, name) for image in images])
            for name in TENSORS
            if getattr(images[0], name) is not None
        }
        return replace(images[0], **found)  # type: ignore[arg-type]

    def rows(self, pick: Tensor) -> StageTrace:
        """Of B images, the images ``pick``."""
        return self.each(lambda x: x.index_select(0, pick.to(x.device)))


@dataclass(frozen=True)
class ImageTrace:
    """One image of the prompt: where its tokens were, and every stage it passed."""

    sample: int
    layout: Layout
    columns: Tensor
    stages: tuple[StageTrace, ...]

    @property
    def tokens_in(self) -> int:
        return len(self.columns)

    def reached(self, layer: int) -> StageTrace | None:
        """The last stage passed before decoder layer ``layer`` runs; None when nothing was touched."""
        passed = [s for s in self.stages if s.stage != "cache" and (s.stage != "llm" or (s.layer or 0) <= layer)]
        return passed[-1] if passed else None

    def kept(self, layer: int = 0) -> Tensor:
        """(K,) long, original tokens that decoder layer ``layer`` works on, in sequence order; -1 for summaries."""
        stage = self.reached(layer)
        return torch.arange(self.tokens_in) if stage is None else stage.source

    def standing_for(self, layer: int = 0) -> Tensor:
        """(N0,) long, index into ``kept(layer)`` of the survivor that stands for each original token; -1: gone."""
        stage = self.reached(layer)
        return torch.arange(self.tokens_in) if stage is None else stage.assign

    def seats(self, layer: int = 0) -> Tensor:
        """(K,) long, positions in the ``input_ids`` row of the tokens decoder layer ``layer`` works on."""
        stage = self.reached(layer)
        return self.columns if stage is None else stage.seats

    def run_lengths(self, layer: int = 0) -> Tensor:
        """(K,) long, for how many frames each token of a video that decoder layer ``layer`` works on stands, in sequence order.

        Itself, and the frames directly after it in which the same place was left out; so 1 for every token of an image.
        """
        kept, there = self.kept(layer), torch.zeros(self.tokens_in, dtype=torch.bool)
        there[kept[kept >= 0].cpu()] = True
        return run_lengths(there, self.layout)


def run_lengths(kept: Tensor, layout: Layout) -> Tensor:
    """Of the tokens ``kept`` (N,) bool of ``layout``, (K,) long, how long each stands: 1, and 1 for every frame directly after
    it in which the token at its place is not kept."""
    cells = uploaded(layout.patches, kept.device)
    there = torch.zeros(layout.frames * layout.height * layout.width, dtype=torch.bool, device=kept.device)
    there[cells[kept]] = True
    held = there.view(layout.frames, -1)
    frame = torch.arange(layout.frames, device=kept.device)[:, None].expand_as(held)
    ends = torch.where(held, frame, layout.frames).flip(0).cummin(dim=0).values.flip(0)  # the next one, itself included
    after = torch.cat([ends[1:], torch.full_like(ends[:1], layout.frames)])
    return (after - frame).flatten()[cells[kept]]


class PromptTrace(Protocol):
    """The images of one prompt, such as a ``tr.Trace`` holds them."""

    @property
    def images(self) -> list[ImageTrace]: ...
