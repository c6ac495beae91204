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
    heads by ``mean`` or ``max``; ``joined`` takes them as a single one of all C channels, with the scale C^-1/2.
    """

    block: int
    heads: Literal["mean", "max", "joined"] = "mean"


@dataclass(frozen=True)
class AttentionReceived(Signal):
    """Mean over heads and over all real queries of the attention each token receives in ``layer`` (0-based): (B, N).

    ``where='tower'`` reads a vision block, queries including prefix tokens; ``where='llm'`` a decoder layer, all real
    queries of the (causal) sequence. ``heads='joined'``, in the tower, is as for ``ClsAttention``.
    """

    layer: int
    where: Where = "tower"
    heads: Literal["mean", "joined"] = "mean"

    def __post_init__(self) -> None:
        if self.heads == "joined" and self.where != "tower":
            raise ValueError(f"{self}: heads are joined in the tower only; allowed: where='tower', or heads='mean'")

    @property
    def part(self) -> Where:
        return self.where


@dataclass(frozen=True)
class LastQueryAttention(Signal):
    """Head-mean attention of the last real prompt token, while decoding of the new one, to every visual token in decoder
    layer ``layer`` (0-based): (B, N). ``softmax=False``: the scaled products of query and key. ``ahead`` compares what enters a
    layer that a step at this very layer is about to shorten, by its norm, its projections and its positions before the
    cut: these run twice, once for all tokens and once for those that are left.
    """

    layer: int
    softmax: bool = True
    ahead: bool = False

    @property
    def part(self) -> Where:
        return "llm"


@dataclass(frozen=True)
class AttentionWalk(Signal):
    """Where mass spread evenly over the real tokens of the prompt is after ``steps`` passes along the attention of decoder
    layer ``layer`` (0-based), its logits divided by ``temperature``; root mean square over heads: (B, N).

    Tokens of earlier turns take mass and do not pass it on.
    """

    layer: int
    steps: int = 5
    temperature: float = 0.1

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

    Reduced over the queries by ``sum``, ``max`` or ``mean``. Queries before an image cannot see it and add nothing.
    ``queries='marked'``: of the text, those that the method noted for each picture as ``Reduction.notes["queries"]``, (B, Q)
    long, their ``column`` as ``Rows`` tell it, -1 for none.
    """

    layer: int
    over: Literal["sum", "max", "mean"] = "sum"
    queries: Literal["text", "marked"] = "text"

    @property
    def part(self) -> Where:
        return "llm"


@dataclass(frozen=True)
class CorrectedAttention(TextAttention):
    """Mean attention of marked text tokens to every visual token in decoder layer ``layer`` (0-based), each pair's divided by
    what distance alone explains: the cosine of all-ones vectors rotated to both positions; of the ``heads`` heads in which
    most is left, None: 14, or half of fewer than 28. (B, N)

    ``least``: the cosine divides as this where it is lower, which it is at large distances; None: as it is, of either sign.
    """

    over: Literal["sum", "max", "mean"] = "mean"
    queries: Literal["text", "marked"] = "marked"
    heads: int | None = None
    least: float | None = None


@dataclass(frozen=True)
class AttentionRank(TextAttention):
    """Numerical rank of the head-mean attention that the marked text tokens of a picture pay its visual tokens in decoder layer
    ``layer`` (0-based): (B,) long, 0 where none is marked.

    Singular values count above the largest times the larger side times the precision of float32.
    """

    axis = "picture"
    over: Literal["sum", "max", "mean"] = "mean"
    queries: Literal["text", "marked"] = "marked"


@dataclass(frozen=True)
class Keys(Signal):
    """Keys of the attention of tower block ``block`` (0-based), after the projection's bias and before any norm or rotary
    embedding, in float32: (B, N, d) the ``mean`` over heads, or (B, N, H * d) all of them ``joined``.

    Where patches are joined in tokens after the tower, the mean over a token's patches. A step of that block itself is
    given the keys before merging, prefix tokens included, as the ``mean`` over heads.
    """

    block: int
    heads: Literal["mean", "joined"] = "mean"


@dataclass(frozen=True)
class ProjectorInput(Signal):
    """The rows that enter the projector, one for each token: (B, N, C_in). Of patches that the projector joins in a token,
    the channels side by side. ``tokens.projector`` makes features of such rows.

    Tokens that are interpolated behind the projector (LLaVA-OneVision's videos, and pictures that it scales down) have
    no row of their own: there it is the features themselves, and ``tokens.projector.exact`` is False.
    """


@dataclass(frozen=True)
class TowerRows(Signal):
    """What leaves tower block ``block`` (0-based), a row per token: (B, N, C). Of patches that a token joins, the mean."""

    block: int


@dataclass(frozen=True)
class TowerPrefix(Signal):
    """What leaves tower block ``block`` (0-based) in front of the patches, such as the [CLS] row: (B, V, P, C)."""

    block: int
    axis = "view"


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
class DecoderKeys(Signal):
    """Keys of decoder layer ``layer`` (0-based) as attention takes them, so after any norm and rotary embedding, all heads
    side by side: (B, N, H * d), H key heads. Positions count from the first token, whatever padding is in front of it.
    """

    layer: int

    @property
    def part(self) -> Where:
        return "llm"


@dataclass(frozen=True)
class Columns(Signal):
    """Where each token stands in the caller's row: (B, N) long, the real columns of this call before it, in its document."""

    @property
    def part(self) -> Where:
        return "llm"


@dataclass(frozen=True)
class Text(Signal):
    """The text of each picture's sample: ``Rows`` of Q tokens, with channels as ``of`` says for visual tokens.

    ``span`` says which: ``after`` the picture, at the ``end``, behind the last picture of its sample, ``before`` it, ``all``
    text, or the ``last`` token. Other pictures and padding are left out, what an answer holds, other documents of a packed
    row, and earlier turns. What a chat template writes is text; ``special=False`` leaves out the ids that the model's
    configuration names, such as those that begin a prompt or surround a picture.
    """

    axis = "text"
    span: Literal["after", "end", "before", "all", "last"] = "all"
    of: Hidden | DecoderKeys = field(default_factory=Hidden)
    special: bool = True

    @property
    def part(self) -> Where:
        return "llm"


def block_of(signal: Signal) -> int | None:
    """The block of the tower that ``signal`` names, if any."""
    if signal.part != "tower":
        return None
    return getattr(signal, "layer", getattr(signal, "block", None))
