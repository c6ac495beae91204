"""How close visual tokens are to the text that comes with them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tokenreduce.kernels.rows import unit_rows
from tokenreduce.tokens import Rows


def cosine_to_text(x: Tensor, text: Rows, to: Literal["each", "mean"] = "mean") -> Tensor:
    """(B, N) float32: cosine of visual rows ``x`` (B, N, D) with the text.

    ``to`` the ``mean`` of its rows, or the mean of the cosines with ``each`` of them. 0 where there is no text.
    """
    if to == "each":
        target = Rows(unit_rows(text.features), text.valid, text.column).mean()
    else:
        target = unit_rows(text.mean()[:, None])[:, 0]
    return (unit_rows(x) @ target[..., None])[..., 0]
