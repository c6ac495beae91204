"""What a method can ask to be shown besides the features: requests, as data.

A request names a statistic and where to take it. The adapter captures exactly these, from q and k, through the
functions in ``tokenreduce.kernels``; no attention map is ever materialised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

Where = Literal["tower", "llm"]
Axis = Literal["token", "view", "picture", "text"]


@dataclass(frozen=True)
class Signal:
    """Base of all requests. Hashable: it is the key under which the value arrives.

    ``part`` names the part of the model that is listened to. ``axis`` says what a value is aligned with: each ``token``,
    (B, N) or with channels (B, N, C); each ``view`` or frame of a picture, (B, V, ...), V = 1 where a method is shown a
    single one; the ``picture``, (B,); or the ``text`` that comes with it, ``Rows``.
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


@dataclass(frozen=True)
class Hidden(Signal):
    """What the language model holds for the visual tokens where the method acts: (B, N, D). Embeddings at the projector,
    what enters the layer at a decoder step; with ``norm='final'``, behind the norm that follows the last layer.
    """

    norm: Literal["final"] | None = None

    @property
    def part(self) -> Where:
        return "llm"


@dataclass(frozen=True)
class Text(Signal):
    """The text of each picture's sample: ``Rows`` of Q tokens, with channels as ``of`` says for visual tokens.

    ``span`` says which: ``after`` the picture, ``before`` it, ``all`` text, or the ``last`` token. Visual tokens of other
    pictures and padding are left out, and so are what an answer holds, other documents of a packed row, and earlier turns.
    What a chat template writes is text; ``special=False`` leaves out the ids that the model's configuration names, such as
    those that begin a prompt or surround a picture.
    """

    axis = "text"
    span: Literal["after", "before", "all", "last"] = "all"
    of: Hidden = field(default_factory=Hidden)
    special: bool = True

    @property
    def part(self) -> Where:
        return "llm"
