"""The three nouns of a reduction: the budget a user sets, the visual tokens a method is shown, the plan it answers with.

Dimension alphabet: B images of one layout, N tokens in, K tokens kept, D channels, H heads, T frames, L layers,
M images of a call.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import take_rows

if TYPE_CHECKING:
    from tokenreduce.signals import Signal

Stage = Literal["encoder", "projector", "llm", "cache"]
PositionPolicy = Literal["keep", "renumber"]
Seen = Literal["frame", "video"]
STAGES: tuple[Stage, ...] = ("encoder", "projector", "llm", "cache")
DROPPED = -1


@dataclass(frozen=True)
class Budget:
    """A number of tokens to keep: a fraction of the tokens that enter a stage, or a count per image.

    A ``float`` in (0, 1] is a fraction f and resolves to ``max(1, round(f * N))``; an ``int`` >= 0 is a count.
    ``1`` is therefore one token and ``1.0`` is all of them.

    Errors: ``TypeError`` for anything but a real number, ``ValueError`` outside the range.

    >>> Budget(0.25).count(576), Budget(64).count(576)
    (144, 64)
    """

    keep: float | int

    def __post_init__(self) -> None:
        keep = self.keep
        if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
            raise TypeError(
                f"keep={keep!r} is a {type(keep).__name__}; allowed: a float in (0, 1] (fraction of the visual tokens) "
                "or an int >= 1 (tokens per image). For example keep=0.25 or keep=64."
            )
        if isinstance(keep, numbers.Integral):
            object.__setattr__(self, "keep", int(keep))
            if keep < 1:
                raise ValueError(
                    f"keep={keep} tokens per image; allowed: an int >= 1, or a float in (0, 1]. "
                    "Use a small count such as keep=16."
                )
            return
        value = float(keep)
        object.__setattr__(self, "keep", value)
        if not (math.isfinite(value) and 0.0 < value <= 1.0):
            hint = f"For {value:g} tokens per image pass the int keep={int(value)}." if value > 1 else ""
            raise ValueError(f"keep={value:g} is outside (0, 1], the range of a fraction. {hint}".rstrip())

    @property
    def is_full(self) -> bool:
        """True for the fraction 1.0, which keeps every token whatever their number."""
        return isinstance(self.keep, float) and self.keep == 1.0

    def count(self, n: int) -> int:
        """Tokens kept out of ``n``: exact, at least 1 and at most ``n`` (0 for ``n == 0``)."""
        wanted = self.keep if isinstance(self.keep, int) else round(self.keep * n)
        return min(max(int(wanted), 1), n)


@dataclass(frozen=True)
class Layout:
    """Where the N tokens of one picture came from: an image, a video, or an image cut into tiles.

    ``frames`` grids of ``height`` x ``width`` cells in raster order; ``cells[n]`` is the flat cell of token n, or None
    when token n simply is cell n. Tokens without a cell (row newlines, a forwarded [CLS]) never reach a method.

    An image that the vision tower saw in several ``views`` (a base view and tiles) has the layout of each view, in the
    order of the tower, and ``cells[n]`` counts tokens through all of them; ``height`` and ``width`` then only say how
    large the grid is that the tiles form together.
    """

    height: int
    width: int
    frames: int = 1
    cells: tuple[int, ...] | None = None
    views: tuple[Layout, ...] = ()

    @property
    def num_tokens(self) -> int:
        if self.cells is not None:
            return len(self.cells)
        return sum(view.num_tokens for view in self.views) or self.frames * self.height * self.width

    @property
    def is_grid(self) -> bool:
        """True when token n is cell n of a complete grid."""
        return self.cells is None and not self.views

    def parts(self, by: Seen) -> tuple[tuple[Layout, tuple[int, ...]], ...]:
        """Views, and with ``by="frame"`` frames: the layout of each and its tokens n, ascending."""
        return _parts(self, by)

    @property
    def patches(self) -> tuple[int, ...]:
        """Cell of every token, counted through the complete grids of all views."""
        if not self.views:
            return self.cells if self.cells is not None else tuple(range(self.num_tokens))
        cells, first = [], 0
        for view in self.views:
            cells += [first + cell for cell in view.patches]
            first += view.frames * view.height * view.width
        return tuple(cells) if self.cells is None else tuple(cells[i] for i in self.cells)


@lru_cache(maxsize=256)
def _parts(layout: Layout, by: Seen) -> tuple[tuple[Layout, tuple[int, ...]], ...]:
    whole = tuple(range(layout.num_tokens))
    if layout.views:
        owner = [v for v, view in enumerate(layout.views) for _ in range(view.num_tokens)]
        cells = layout.cells or whole
        return tuple((view, tuple(n for n in whole if owner[cells[n]] == v)) for v, view in enumerate(layout.views))
    if by == "video" or layout.frames == 1:
        return ((layout, whole),)
    area = layout.height * layout.width
    places = layout.cells or whole
    split = []
    for t in range(layout.frames):
        own = tuple(n for n in whole if places[n] // area == t)
        cells = tuple(places[n] % area for n in own)
        split.append((Layout(layout.height, layout.width, cells=None if cells == tuple(range(area)) else cells), own))
    return tuple(split)


@dataclass
class VisualTokens:
    """B images of the same layout and the same current length, as a method sees them.

    Attributes:
        features: (B, N, D) token features at this point of the model.
        layout: layout of the *original* tokens of these images.
        stage: the stage that asks.
        layer: decoder layer or encoder block (0-based) that asks; None at the projector.
        source: (B, N) original token each current token sits at, ascending in an untouched image; -1 for a summary.
        size: (B, N) float, number of original tokens each current token stands for.
        role: (B, N) int, roles given by earlier stages (0 = none).
        signals: what the method's step asked for, each aligned with the N current tokens.
        prefix: number of leading tokens ([CLS], registers) included in ``features``; they must survive in place. Only
            at the encoder; every (B, N) tensor includes them there.
        amount: the number that the method's plan attached to this step, such as how many tokens to merge in this block.
    """

    features: Tensor
    layout: Layout
    stage: Stage = "projector"
    layer: int | None = None
    source: Tensor = None  # type: ignore[assignment]  # filled in below when not given
    size: Tensor = None  # type: ignore[assignment]
    role: Tensor = None  # type: ignore[assignment]
    signals: Mapping[Signal, Tensor] = field(default_factory=dict)
    prefix: int = 0
    amount: float | None = None

    def __post_init__(self) -> None:
        batch, n = self.features.shape[:2]
        if self.source is None:
            self.source = torch.arange(n, device=self.features.device).expand(batch, n)
        if self.size is None:
            self.size = torch.ones(batch, n, dtype=torch.float32, device=self.features.device)
        if self.role is None:
            self.role = torch.zeros(batch, n, dtype=torch.long, device=self.features.device)

    @property
    def num_tokens(self) -> int:
        return self.features.shape[1]

    def signal(self, wanted: Signal) -> Tensor:
        try:
            return self.signals[wanted]
        except KeyError:
            raise KeyError(f"{wanted} was not captured; list it in the `needs` of the step that reads it") from None


@dataclass
class Reduction:
    """A plan: which rows come out, where each sits, and which tokens it stands for.

    Attributes:
        source: (B, K) long. Row k sits at the position of input token ``source[b, k]``; -1 marks a summary token that
            sits at no token of its own and takes a free place of the image.
        assign: (B, N) long. Row that input token n is represented by, or -1 when it is dropped.
        merges: True when a row is the weighted mean of the tokens assigned to it, False when it is its source, unchanged.
        weight: (B, N) float, relative weight of token n in its row; None: equal weights.
        features: (B, K, D) features of the rows, only where they are neither their source nor such a mean.
        positions: ``keep`` the position id of the source, or ``renumber`` the shortened sequence 0, 1, 2, ...
        role: (B, N) int of the *input* tokens, meanings in ``role_names`` (None: roles stay what they were).
        score: (B, N) float of the *input* tokens, what they were ranked by, higher is kept first (None: no ranking). Only
            noted in the trace.
        valid: (B, K) bool for data-dependent counts: rows that really exist, trailing rows False. None: all rows.
        in_order: True when rows are unchanged tokens in ascending source order (``select`` sets it).
    """

    source: Tensor
    assign: Tensor
    merges: bool = False
    weight: Tensor | None = None
    features: Tensor | None = None
    positions: PositionPolicy = "keep"
    role: Tensor | None = None
    role_names: tuple[str, ...] = ()
    score: Tensor | None = None
    valid: Tensor | None = None
    in_order: bool = False

    @classmethod
    def select(cls, keep: Tensor, n: int, **more: Any) -> Reduction:
        """Keep the tokens ``keep`` (B, K) of ``n`` and drop the rest; rows come out in source order."""
        source = keep.sort(dim=1).values
        assign = torch.full((source.shape[0], n), DROPPED, dtype=torch.long, device=source.device)
        rows = torch.arange(source.shape[1], device=source.device).expand_as(source)
        return cls(source=source, assign=assign.scatter_(1, source, rows), in_order=True, **more)

    @classmethod
    def top(cls, score: Tensor, k: int, **more: Any) -> Reduction:
        """Keep the ``k`` tokens of highest ``score`` (B, N); ties go to the lowest index."""
        return cls.select(top_k(score, k), score.shape[1], score=score, **more)

    @classmethod
    def merge(cls, assign: Tensor, source: Tensor, weight: Tensor | None = None, **more: Any) -> Reduction:
        """Replace each group ``assign`` (B, N) by its mean, weighted by ``weight`` (B, N); group r sits at ``source[:, r]``."""
        return cls(source=source, assign=assign, merges=True, weight=weight, **more)

    @classmethod
    def identity(cls, tokens: VisualTokens, **more: Any) -> Reduction:
        """Keep every token, for a step that only gives roles."""
        batch, n = tokens.features.shape[:2]
        rows = torch.arange(n, device=tokens.features.device).expand(batch, n)
        return cls(source=rows, assign=rows, in_order=True, **more)

    def carry(self, x: Tensor) -> Tensor:
        """The rows (B, K, D) that the input rows ``x`` (B, N, D) become: selected or averaged."""
        if self.merges:
            return group_mean(x, self.assign, self.num_kept, self.weight)
        return take_rows(x, self.source)

    @property
    def num_kept(self) -> int:
        return self.source.shape[1]

    def does_nothing(self, n: int) -> bool:
        """Whether this plan leaves all ``n`` tokens as they are and says nothing new about them."""
        unchanged = self.in_order and self.num_kept == n and self.features is None and not self.merges
        return unchanged and self.valid is None and self.role is None and self.positions == "keep"

    def carry_along(self, x: Tensor) -> Tensor:
        """The rows (B, K, E) of values ``x`` (B, N, E) that share the tokens' fate but not their features."""
        if self.merges:
            return self.carry(x)
        own = take_rows(x, self.source.clamp_min(0))
        if self.features is None:
            return own
        return torch.where((self.source < 0)[..., None], group_mean(x, self.assign, self.num_kept), own)

    def check(self, tokens: VisualTokens) -> Reduction:
        """Raise if this plan does not fit ``tokens``; shapes only, so that nothing waits for a device."""
        batch, n = tokens.features.shape[:2]
        k = self.num_kept
        if self.source.shape[0] != batch or k > n:
            raise ValueError(
                f"Reduction.source has shape {tuple(self.source.shape)}; allowed: ({batch}, K) with K <= {n}"
            )
        if tuple(self.assign.shape) != (batch, n):
            raise ValueError(f"Reduction.assign has shape {tuple(self.assign.shape)}; allowed: ({batch}, {n})")
        if self.features is not None and tuple(self.features.shape) != (batch, k, tokens.features.shape[2]):
            raise ValueError(
                f"Reduction.features has shape {tuple(self.features.shape)}; "
                f"allowed: ({batch}, {k}, {tokens.features.shape[2]})"
            )
        if self.positions not in ("keep", "renumber"):
            raise ValueError(f"Reduction.positions={self.positions!r}; allowed: 'keep', 'renumber'")
        return self


def top_k(score: Tensor, k: int) -> Tensor:
    """Indices (B, k) of the k highest of ``score`` (B, N), highest first; ties go to the lowest index."""
    return score.float().sort(dim=1, descending=True, stable=True).indices[:, :k]
