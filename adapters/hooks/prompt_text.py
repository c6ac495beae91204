"""The text of a prompt, as methods ask for it: which columns hold it, and which of them come with which picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenreduce.groups import Image, ImageGroup
from tokenreduce.signals import Hidden, Text
from tokenreduce.tokens import Rows


@dataclass
class PromptText:
    """The columns of one chunk that hold text.

    Attributes:
        visual: (B, L) bool on the CPU, columns of placeholders; ``real``, (B, L) bool, those that are no padding.
        images: the pictures of the chunk, in order.
        end: (B,) long, column behind the question; None: the chunk ends with it.
        documents: (B, L) long, the document of each column; None: one in each row.
        learned: (B, L) bool, columns that labels ask to be learned; None: not told.
        special: (B, L) bool, columns whose ids the model's configuration names.
    """

    visual: Tensor
    real: Tensor
    images: Sequence[Image]
    end: Tensor | None
    documents: Tensor | None
    learned: Tensor | None
    special: Tensor | None

    @cached_property
    def column(self) -> Tensor:
        """(B, L) long, number of real columns of its document before each."""
        before = self.real.cumsum(dim=1) - self.real.long()
        if self.documents is None:
            return before
        begins = self.documents.diff(dim=1, prepend=self.documents[:, :1] - 1) != 0
        return before - torch.where(begins, before, 0).cummax(dim=1).values

    def at(self, samples: Tensor, column: Tensor) -> Tensor:
        """(B, Q) long, the columns of rows ``samples`` (B,) that have ``column`` (B, Q) real ones before them."""
        return torch.searchsorted(self.real.cumsum(dim=1)[samples], column + 1).clamp_max(self.real.shape[1] - 1)

    @cached_property
    def text(self) -> Tensor:
        """(B, L) bool, real columns of the prompt that hold no picture."""
        text = self.real & ~self.visual.to(self.real.device, non_blocking=True)
        if self.end is not None:
            text = text & (torch.arange(text.shape[1], device=text.device) < self.end[:, None])
        if self.documents is not None and self.learned is not None:  # every document has an end of its own
            text = text & ~self.learned
        return text

    def find(self, signal: Text, group: ImageGroup) -> tuple[Tensor, Tensor]:
        """(B, Q) long, the columns that hold what ``signal`` asks for of each picture of ``group``; (B, Q) bool, which exist.

        Q is known on the host, and so may be more than the longest text.
        """
        rows, column = group.samples, torch.arange(self.text.shape[1], device=self.text.device)
        own = self.text[rows]
        if not signal.special and self.special is not None:
            own = own & ~self.special[rows]
        first, last = group.columns.amin(dim=1, keepdim=True), group.columns.amax(dim=1, keepdim=True)
        visual = self.visual.to(rows.device, non_blocking=True)[rows]
        if self.documents is not None:
            documents = self.documents[rows]
            same = documents == documents.gather(1, first)
            own, visual = own & same, visual & same
        if signal.span == "last":
            at = torch.where(own, column, -1).amax(dim=1, keepdim=True)
            return at.clamp_min(0), at >= 0
        if signal.span == "end":
            last = torch.where(visual, column, -1).amax(dim=1, keepdim=True)
        if signal.span in ("after", "end"):
            own = own & (column > last)
        elif signal.span == "before":
            own = own & (column < first)
        longest = max(self._room(signal.span, member) for member in group.members)
        order = own.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
        return order, own.gather(1, order)

    def rows(self, signal: Text, group: ImageGroup, held: Tensor, slot: Tensor | None) -> Rows:
        """What ``held`` (B, W, C) holds for the text that ``signal`` asks for; ``slot`` (B, L) finds columns in it."""
        columns, valid = self.find(signal, group)
        samples = group.samples[:, None]
        features = held[samples, columns if slot is None else slot[samples, columns]]
        return Rows(features.detach(), valid, self.column[samples, columns])

    def _room(self, span: str, member: int) -> int:
        """Columns without a placeholder where the text of picture ``member`` can be."""
        image = self.images[member]
        first, last = int(image.columns.min()), int(image.columns.max())
        behind = (last + 1, None)
        start, stop = {"after": behind, "end": behind, "before": (0, first)}.get(span, (0, None))
        return int((~self.visual[image.sample, slice(start, stop)]).sum())


@torch.no_grad()
def normed(rows: Tensor, signal: Hidden, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """``rows`` as ``signal`` asks for them, ``norm`` being the decoder's last.

    Errors: ``ValueError`` where a token has several states, which that norm only meets joined in one.
    """
    if signal.norm != "final":
        return rows.detach()
    width = getattr(norm, "weight", rows).shape[-1]
    if rows.shape[-1] != width:
        raise ValueError(
            f"{signal} is asked for inside a language model whose tokens have {rows.shape[-1] // width} states of {width} "
            "channels each, which its last norm only meets joined; allowed here: Hidden(norm=None), or methods in front of the "
            "first layer"
        )
    return norm(rows)
