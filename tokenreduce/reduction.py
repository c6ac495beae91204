"""What a method answers with: which tokens survive and who joins whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tokenreduce.kernels.group_mean import GroupMean, group_mean
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.top_k import top_k
from tokenreduce.mixing import Mix, check_mix
from tokenreduce.tokens import VisualTokens, holds_nan

PositionPolicy = Literal["keep", "renumber"]
DROPPED = -1


@dataclass
class Reduction:
    """A plan: which rows come out, where each sits, and which tokens it stands for.

    Attributes:
        source: (B, K) long. Row k sits at the position of input token ``source[b, k]``; -1 marks a summary token that
            sits at no token of its own and takes a free place of the image, with the position id of that place, or the
            nearest one between those of the rows around it.
        assign: (B, N) long. Row that input token n is represented by, or -1 when it is dropped.
        merges: True when a row is the weighted mean of the tokens assigned to it, False when it is its source, unchanged.
        weight: (B, N) float, relative weight of token n in its row; around a layer, how often what it adds counts; None: 1.
        features: (B, K, D) features of the rows, only where they are neither their source nor such a mean; inside an encoder
            never, where rows may be units of several patches: ``mix`` says how they come about.
        mix: what some rows of a selection gain of other tokens. A token that a row is a sum of is assigned to that row.
        counts: (B, K) float, inside an encoder: how often proportional steps count each row from now on; None: as its tokens.
        restore: (B, N, K) float, inside an encoder: how each input token is made again of what the rows have become behind the
            last block, so that a language model reads all of them; None: it is a copy of its row.
        positions: ``keep`` the position id of the source, or ``renumber`` the shortened sequence 0, 1, 2, ...
        role: (B, N) int of the *input* tokens, meanings in ``role_names`` (None: roles stay what they were).
        score: (B, N) float of the *input* tokens, what they were ranked by, higher first, for the trace; None: no ranking.
        valid: (B, K) bool for data-dependent counts: rows that really exist, trailing rows False. None: all rows.
        covers: True when it is known that no token is dropped, so that nobody has to look for one.
        in_order: True when rows are unchanged tokens in ascending source order (``select`` sets it).
        notes: tensors by name, first axis B, that later steps of the same method find in ``tokens.notes``, and, where a video
            goes on over several calls, the steps at its next frames. Of tokens they tell by the original ones.
    """

    source: Tensor
    assign: Tensor
    merges: bool = False
    weight: Tensor | None = None
    features: Tensor | None = None
    mix: Mix | None = None
    counts: Tensor | None = None
    restore: Tensor | None = None
    positions: PositionPolicy = "keep"
    role: Tensor | None = None
    role_names: tuple[str, ...] = ()
    score: Tensor | None = None
    valid: Tensor | None = None
    covers: bool = False
    in_order: bool = False
    notes: Mapping[str, Tensor] = field(default_factory=dict)

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
    def where(cls, kept: Tensor, **more: Any) -> Reduction:
        """Keep the tokens ``kept`` (B, N) bool, a number of its own per image, and drop the rest; in source order."""
        count = kept.sum(dim=1)
        k = int(count.max())
        return cls(
            source=top_k(kept.float(), k),
            assign=torch.where(kept, kept.cumsum(dim=1) - 1, DROPPED),
            valid=torch.arange(k, device=kept.device) < count[:, None],
            in_order=True,
            **more,
        )

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

    def rows(self, pick: Tensor | slice, k: int | None = None) -> Reduction:
        """The plan of the images ``pick``, whole; ``k``: cut to its first k rows, which all exist."""
        given: dict[str, Any] = {name: x[pick] for name, x in vars(self).items() if isinstance(x, Tensor)}
        given["notes"] = {name: x[pick] for name, x in self.notes.items()}
        given["mix"] = None if self.mix is None else self.mix.images(pick)
        if k is not None:
            cut = {"source": 1, "features": 1, "counts": 1, "restore": 2}
            given |= {n: given[n].narrow(dim, 0, k) for n, dim in cut.items() if n in given} | {"valid": None}
        return replace(self, **given)

    def reordered(self, source: Tensor) -> Reduction:
        """A selection with its rows in the order ``source`` (B, K), the same tokens as before."""
        rows = torch.arange(source.shape[1], device=source.device).expand_as(source)
        return replace(self, source=source, assign=self.assign.scatter(1, source, rows), in_order=False)

    def carry(self, x: Tensor) -> Tensor:
        """The rows (B, K, D) that the input rows ``x`` (B, N, D) become: selected, averaged or mixed."""
        if self.merges and self.num_kept:
            return self._mean(x)
        rows = take_rows(x, self.source)
        return rows if self.mix is None else self.mix.added(rows, x)

    def first_of_rows(self) -> Tensor:
        """(B, K) long, the first input token that each row stands for."""
        tokens = torch.arange(self.assign.shape[1], device=self.assign.device).expand_as(self.assign)
        rows = torch.where(self.assign < 0, self.num_kept, self.assign)
        found = torch.zeros(len(rows), self.num_kept + 1, dtype=torch.long, device=rows.device)
        return found.scatter_reduce(1, rows, tokens, "amin", include_self=False)[:, :-1]

    @cached_property
    def _mean(self) -> GroupMean:
        return GroupMean(self.assign, self.num_kept, self.weight, covers=self.covers)

    @property
    def num_kept(self) -> int:
        return self.source.shape[1]

    def does_nothing(self, n: int) -> bool:
        """Whether this plan leaves all ``n`` tokens as they are and says nothing new about them."""
        if not self.in_order or self.num_kept != n or self.features is not None or self.merges or self.mix is not None:
            return False
        return self.valid is None and self.role is None and self.positions == "keep"

    def carry_along(self, x: Tensor) -> Tensor:
        """The rows (B, K, E) of values ``x`` (B, N, E) that share the tokens' fate but not their features."""
        if self.merges:
            return self.carry(x)
        own = take_rows(x, self.source.clamp_min(0))
        if self.features is None or not self.num_kept:
            return own
        return torch.where((self.source < 0)[..., None], group_mean(x, self.assign, self.num_kept), own)

    def check(self, tokens: VisualTokens, *, values: bool = True) -> Reduction:
        """Raise if this plan does not fit ``tokens``; returns it.

        Shapes and dtypes always; indices, duplicates and NaN only with ``values``, since on a device that waits for it.
        """
        batch, n, channels = tokens.features.shape
        k = self.num_kept if isinstance(self.source, Tensor) and self.source.ndim == 2 else -1
        if not 0 <= k <= n or len(self.source) != batch:
            shape = tuple(self.source.shape) if isinstance(self.source, Tensor) else type(self.source).__name__
            raise ValueError(f"Reduction.source has shape {shape}; allowed: ({batch}, K) with K <= {n}")
        shapes = {
            "assign": (batch, n),
            "weight": (batch, n),
            "role": (batch, n),
            "score": (batch, n),
            "valid": (batch, k),
            "counts": (batch, k),
            "features": (batch, k, channels),
            "restore": (batch, n, k),
        }
        for name, shape in shapes.items():
            x = getattr(self, name)
            if x is None and name != "assign":
                continue
            if not isinstance(x, Tensor):
                raise TypeError(f"Reduction.{name} is a {type(x).__name__}; allowed: a tensor of shape {shape}")
            if tuple(x.shape) != shape:
                raise ValueError(f"Reduction.{name} has shape {tuple(x.shape)}; allowed: {shape}")
        for name, kind in {"source": torch.long, "assign": torch.long, "role": torch.long, "valid": torch.bool}.items():
            x = getattr(self, name)
            if x is not None and x.dtype != kind:
                raise TypeError(f"Reduction.{name} is {x.dtype}; allowed: {kind}, for example .to({kind})")
        for name, x in self.notes.items():
            if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != batch:
                found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"Reduction.notes[{name!r}] is {found}; allowed: a tensor of shape ({batch}, ...)")
        for name in ("weight", "score", "features", "counts", "restore"):
            x = getattr(self, name)
            if x is not None and not x.is_floating_point():
                raise TypeError(f"Reduction.{name} is {x.dtype}; allowed: a float dtype, for example .float()")
        if self.positions not in ("keep", "renumber"):
            raise ValueError(f"Reduction.positions={self.positions!r}; allowed: 'keep', 'renumber'")
        if tokens.stage == "encoder" and self.features is not None:
            raise ValueError(
                "a Reduction at stage 'encoder' that makes the features of its rows; allowed: tokens selected, averaged, as by "
                "Reduction.merge, or summed, by mix=Mix(...)"
            )
        if tokens.stage in ("pixels", "decode") and (self.merges or self.features is not None or not self.in_order):
            raise ValueError(
                f"a Reduction at stage {tokens.stage!r} that merges tokens or makes their features, of which there are none; "
                "allowed: a selection, from Reduction.top, .select, .where or .identity"
            )
        check_mix(self.mix, tokens.stage, batch, only_selects=not self.merges and self.valid is None)
        if values and self.source.numel():
            self._check_values(n)
        return self

    def _check_values(self, n: int) -> None:
        source, assign = self.source.cpu().numpy(), self.assign.cpu().numpy()  # a third of the time of small tensors
        real = True if self.valid is None else self.valid.cpu().numpy()
        source = source if real is True else np.where(real, source, DROPPED)
        for name, index, bound in (("source", source, n), ("assign", assign, self.num_kept)):
            low, high = int(index.min()), int(index.max())
            if low < DROPPED or high >= bound:
                raise ValueError(
                    f"Reduction.{name} holds {low if low < DROPPED else high}; allowed: 0 to {bound - 1}, or -1"
                )
        if self.covers and low < 0:
            raise ValueError("Reduction.covers is True, but assign drops a token (-1); allowed: covers=False")
        rows = _occurrences(source, n)
        if rows.max() > 1:
            token = int((rows > 1).nonzero()[1][0])
            raise ValueError(
                f"Reduction.source holds token {token} twice in one image; allowed: each token once. Give tokens that become "
                "one the same row in assign, for example by Reduction.merge"
            )
        if self.merges:
            empty = (_occurrences(assign, self.num_kept) == 0) & real
            if empty.any():
                raise ValueError(
                    f"Reduction.assign gives row {int(empty.nonzero()[1][0])} no token, so its mean would be zero; allowed: at "
                    "least one token per row"
                )
        for name in ("features", "weight"):
            x = getattr(self, name)
            if x is not None and holds_nan(x):
                raise ValueError(f"Reduction.{name} holds NaN; allowed: finite numbers. Compute it in float32")


def _occurrences(index: np.ndarray, bound: int) -> np.ndarray:
    """How often each row of ``index`` (B, K), of numbers from -1 on, holds 0, 1, ... below ``bound``: (B, bound)."""
    shift = np.arange(1, len(index) * (bound + 1), bound + 1)[:, None]
    return np.bincount((index + shift).ravel(), minlength=len(index) * (bound + 1)).reshape(len(index), -1)[:, 1:]
