"""What a method can ask to be shown besides the features: requests, as data.

A request names a statistic and where to take it. The adapter captures exactly these, from q and k, through the
functions in ``tokenreduce.kernels``; no attention map is ever materialised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Where = Literal["tower", "llm"]
Axis = Literal["token", "view", "picture"]


@dataclass(frozen=True)
class Signal:
    """Base of all requests. Hashable: it is the key under which the value arrives.

    ``part`` names the part of the model that is listened to. ``axis`` says what a value is aligned with: each ``token``,
    (B, N) or with channels (B, N, C); each ``view`` or frame of a picture, (B, V, ...), V = 1 where a method is shown a
    single one; or the ``picture``, (B,).
    """

    axis: ClassVar[Axis] = "token"

    @property
    def part(self) -> Where:
        return "tower"


@dataclass(frozen=True)
class ClsAttention(Signal):
    """Post-softmax attention of the [CLS] query of tower block ``block`` (0-based) to every patch: (B, N).

    Normalised over all keys including [CLS]; the [CLS] key is cut off without renormalising. ``heads`` reduces the
    heads by ``mean`` or ``max``.
    """

    block: int
    heads: Literal["mean", "max"] = "mean"


@dataclass(frozen=True)
class AttentionReceived(Signal):
    """Mean over heads and over all real queries of the attention each token receives in ``layer`` (0-based): (B, N).

    ``where='tower'`` reads a vision block, queries including prefix tokens; ``where='llm'`` a decoder layer, all real
    queries of the (causal) sequence.
    """

    layer: int
    where: Where = "tower"

    @property
    def part(self) -> Where:
        return self.where


@dataclass(frozen=True)
class LastQueryAttention(Signal):
    """Attention of the last real prompt token to every visual token in decoder layer ``layer`` (0-based), head mean: (B, N)."""

    layer: int

    @property
    def part(self) -> Where:
        return "llm"


@dataclass(frozen=True)
class ImageFingerprint(Signal):
    """A 64-bit integer per image, a hash of its pixel values: (B,) long. Equal pixels give equal numbers in any batch."""

    axis = "picture"


@dataclass(frozen=True)
class TextAttention(Signal):
    """Head-mean attention of all real text queries to every visual token in decoder layer ``layer`` (0-based): (B, N).

    Reduced over the queries by ``sum`` or ``max``. Queries before an image cannot see it and add nothing.
    """

    layer: int
    over: Literal["sum", "max"] = "sum"

    @property
    def part(self) -> Where:
        return "llm"


@dataclass(frozen=True)
class Keys(Signal):
    """Keys of the attention of tower block ``block`` (0-based), mean over heads, before merging in that block:
    (B, N, head_dim), prefix tokens included. Given only to encoder steps of that block.
    """

    block: int
