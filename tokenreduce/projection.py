"""The model's own way from rows of its tower to features of tokens, as methods may use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class TwoLayers(NamedTuple):
    """``second @ act(first @ x + first_bias) + second_bias`` of the rows x; weights (out, in), biases (out,) or None."""

    first: Tensor
    first_bias: Tensor | None
    act: Callable[[Tensor], Tensor]
    second: Tensor
    second_bias: Tensor | None


@dataclass(frozen=True)
class Projector:
    """Rows (..., C_in) in, features (..., D) out, with the weights and in the dtype of the model.

    Attributes:
        run: the function.
        linear: its weights, where it is two plain linear layers with a function of single numbers between; else None.
        exact: whether the features of a token are this function of its row. Where they are not (tokens that are
            interpolated behind the projector), rows are the features themselves, and the function changes nothing.
    """

    run: Callable[[Tensor], Tensor]
    linear: TwoLayers | None = field(default=None, repr=False)
    exact: bool = True

    def __call__(self, rows: Tensor) -> Tensor:
        return self.run(rows)

    @classmethod
    def none(cls) -> Projector:
        """That of tokens which are interpolated behind the projector."""
        return cls(_unchanged, exact=False)


def _unchanged(rows: Tensor) -> Tensor:
    return rows
