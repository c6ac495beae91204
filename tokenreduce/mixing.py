"""Rows that gain a share of other tokens, beside being selected: sums, not means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.kernels.rows import take_rows


@dataclass(frozen=True)
class Mix:
    """What some rows of a ``Reduction`` gain: row ``rows[b, r]`` becomes its source plus ``share[b, r] @ x[tokens[b]]``.

    A row that is a sum without its source itself has a share of -1 of it.

    Attributes:
        rows: (B, R) long; one that comes twice gains both.
        tokens: (B, E) long, input tokens that are shared out.
        share: (B, R, E) float.
    """

    rows: Tensor
    tokens: Tensor
    share: Tensor

    def added(self, rows: Tensor, x: Tensor) -> Tensor:
        """The ``rows`` (B, K, D) that were selected of ``x`` (B, N, D), with what they gain; sums in float32."""
        gain = self.share.float() @ take_rows(x, self.tokens).float()
        at = self.rows[..., None].expand(-1, -1, x.shape[2])
        return rows.float().scatter_add(1, at, gain).to(x.dtype)

    def images(self, pick: Tensor | slice) -> Mix:
        """That of the images ``pick``."""
        return Mix(self.rows[pick], self.tokens[pick], self.share[pick])

    @classmethod
    def stacked(cls, parts: Sequence[tuple[Tensor, Mix]], batch: int) -> Mix | None:
        """``parts``, the mix of the images (G,) of a batch each, as one; None: there are none."""
        if not parts:
            return None
        like = parts[0][1]
        most = max(mix.rows.shape[1] for _, mix in parts), max(mix.tokens.shape[1] for _, mix in parts)
        rows, tokens = like.rows.new_zeros(batch, most[0]), like.tokens.new_zeros(batch, most[1])
        share = like.share.new_zeros(batch, *most)
        for images, mix in parts:
            _, r, e = mix.share.shape
            rows[images, :r], tokens[images, :e], share[images, :r, :e] = mix.rows, mix.tokens, mix.share
        return cls(rows, tokens, share)

    @classmethod
    def side_by_side(cls, parts: Sequence[Mix]) -> Mix | None:
        """All images of ``parts``, whose rows and tokens are counted through one sequence, as a batch of one."""
        if not parts:
            return None
        rows, tokens = (
            torch.cat([x.flatten() for x in own])[None] for own in zip(*((m.rows, m.tokens) for m in parts))
        )
        return cls(rows, tokens, torch.block_diag(*(own for mix in parts for own in mix.share))[None])


def check_mix(mix: Mix | None, stage: str, batch: int, *, only_selects: bool) -> None:
    """Raise where ``mix`` has no place in a plan at ``stage`` for ``batch`` images, or its tensors do not fit each other."""
    if mix is None:
        return
    if stage != "encoder" or not only_selects:
        raise ValueError(
            "Reduction.mix belongs to a selection of equal counts at stage 'encoder'; allowed elsewhere: features, the rows "
            "themselves, or Reduction.merge"
        )
    if tuple(mix.share.shape) != (batch, mix.rows.shape[-1], mix.tokens.shape[-1]):
        raise ValueError(
            f"Reduction.mix has shares of shape {tuple(mix.share.shape)} for rows of shape {tuple(mix.rows.shape)} and tokens "
            f"of shape {tuple(mix.tokens.shape)}; allowed: (B, R, E), (B, R) and (B, E)"
        )
