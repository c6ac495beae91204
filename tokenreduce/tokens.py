"""The visual tokens that a method is given.

Dimension alphabet: B images of one layout, N tokens in, K tokens kept, D channels, H heads, T frames, L layers,
M images of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenreduce.layout import Layout
from tokenreduce.learned_module import Learned
from tokenreduce.projection import Projector
from tokenreduce.uploading import uploaded

if TYPE_CHECKING:
    from tokenreduce.signals import Signal

Stage = Literal["pixels", "encoder", "projector", "llm", "cache", "decode"]
STAGES: tuple[Stage, ...] = ("pixels", "encoder", "projector", "llm", "cache", "decode")


@dataclass
class Rows:
    """Q tokens of text that come with each of B pictures, in the order of the prompt.

    Attributes:
        features: (B, Q, D), whatever dtype the model runs in.
        valid: (B, Q) bool; rows that are not valid fill up shorter texts and hold anything. Q may be 0.
        column: (B, Q) long, where each stands in the caller's row, as ``Columns`` says of visual tokens.
    """

    features: Tensor
    valid: Tensor
    column: Tensor

    @classmethod
    def of(cls, texts: Sequence[Tensor], device: torch.device) -> Rows:
        """Of (Q, D) rows of each text that stand in no prompt."""
        count = torch.tensor([len(rows) for rows in texts])
        features = pad_sequence([rows.to(device) for rows in texts], batch_first=True)
        valid = (torch.arange(features.shape[1]) < count[:, None]).to(device, non_blocking=True)
        return cls(features, valid, torch.zeros_like(valid, dtype=torch.long))

    def repeat_interleave(self, count: int) -> Rows:
        """``count`` copies of every picture's text, side by side."""
        return Rows(*(x.repeat_interleave(count, dim=0) for x in (self.features, self.valid, self.column)))

    def mean(self) -> Tensor:
        """(B, D) float32, the mean of the valid rows; zeros where there is none."""
        weight = self.valid.float()[..., None]
        total = self.features.float().masked_fill(~self.valid[..., None], 0).sum(dim=1)
        return total / weight.sum(dim=1).clamp_min(1)


@dataclass
class VisualTokens:
    """B images of the same layout and the same current length, as a method sees them.

    Attributes:
        features: (B, N, D) token features at this point of the model; at the pixels, the values of each token's unit, of
            the shape ``ModelFacts.pixel_unit`` and between 0 and 1, in float32; while decoding, where tokens are entries of
            the cache, (B, N, 0).
        layout: layout of the *original* tokens of these images.
        stage: the stage that asks.
        layer: decoder layer or encoder block (0-based) that asks; None at the pixels and at the projector.
        source: (B, N) original token each current token sits at, ascending in an untouched image; -1 for a summary.
        size: (B, N) float, number of original tokens each current token stands for.
        role: (B, N) int, roles given by earlier stages (0 = none).
        signals: what the method's step asked for, each aligned as its ``axis`` says; text comes as ``Rows``.
        projector: makes features of rows such as those of the signal ``ProjectorInput``; given to steps that ask for it.
        prefix: number of leading tokens ([CLS], registers) included in ``features``; they must survive in place. Only
            at the encoder; every (B, N) tensor includes them there.
        share: of a view of an image, the budget that falls to it; None where the image is shown as a whole.
        entered: tokens of each image that entered the language model; in front of it, N.
        assign: (B, N0) long, current token that stands for each original one; -1 when it is gone.
        notes: what earlier steps of the same method noted (``Reduction.notes``); of a video that goes on over several calls
            (``tr.stream``), at the projector, what it noted of the frames before these.
        window: (B, N) long, in a block of a tower that attends within windows: the window of each token, which merges with
            others of its own as long as there are any. None: all of an image attend to each other.
        cell: (B, N) long, inside an encoder: where in the grid of ``layout`` each token sits, counted row by row; below 0 for
            those of the prefix that are no patches.
        amount: what the method's plan attached to this step, such as how many tokens to merge in this block.
        sample: (B,) long, the row of the call that each image belongs to; None where there is none to tell.
        learned: the module of a method that learns (``LearnedMethod``), which follows the model's tensors; None: there is none.
    """

    features: Tensor
    layout: Layout
    stage: Stage = "projector"
    layer: int | None = None
    source: Tensor = None  # type: ignore[assignment]  # filled in below when not given
    size: Tensor = None  # type: ignore[assignment]
    role: Tensor = None  # type: ignore[assignment]
    signals: Mapping[Signal, Any] = field(default_factory=dict)
    projector: Projector = field(default_factory=Projector.none)
    prefix: int = 0
    share: int | str | None = None
    entered: int = None  # type: ignore[assignment]
    assign: Tensor = None  # type: ignore[assignment]
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    window: Tensor | None = None
    cell: Tensor | None = None
    amount: Any = None
    sample: Tensor | None = None
    learned: Learned | None = None

    def __post_init__(self) -> None:
        batch, n = self.features.shape[:2]
        if self.source is None:
            self.source = torch.arange(n, device=self.features.device).expand(batch, n)
        if self.assign is None:
            self.assign = torch.arange(n, device=self.features.device).expand(batch, n)
        if self.entered is None:
            self.entered = n
        if self.size is None:
            self.size = torch.ones(batch, n, dtype=torch.float32, device=self.features.device)
        if self.role is None:
            self.role = torch.zeros(batch, n, dtype=torch.long, device=self.features.device)

    @property
    def num_tokens(self) -> int:
        return self.features.shape[1]

    def holding_nan(self) -> list[Signal]:
        """The signals of which a number is NaN; on a device this waits for it."""
        values = ((name, x.features[x.valid] if isinstance(x, Rows) else x) for name, x in self.signals.items())
        return [name for name, x in values if x.is_floating_point() and holds_nan(x)]

    def signal(self, wanted: Signal) -> Any:
        """The value of ``wanted``: a tensor, or ``Rows`` for text."""
        try:
            return self.signals[wanted]
        except KeyError:
            raise KeyError(f"{wanted} was not captured; list it in the `needs` of the step that reads it") from None


def frame_of(layout: Layout, source: Tensor) -> Tensor:
    """(B, N) long, ascending: the frame of each token of a video, which sit at ``source`` (B, N); of a summary, which sits at
    none, that of the token before it."""
    cell = source.clamp_min(0)
    if layout.cells is not None:
        cell = uploaded(layout.cells, source.device)[cell]
    return (cell // (layout.height * layout.width)).masked_fill(source < 0, 0).cummax(dim=1).values


def holds_nan(x: Tensor) -> bool:
    """Whether ``x``, of a float dtype, does; one pass over it where all its numbers and their sum are finite."""
    x = x.detach()
    return not isfinite(x.sum()) and bool(x.isnan().any())
