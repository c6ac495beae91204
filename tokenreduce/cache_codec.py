"""Keys and values of cached tokens as numbers of few bits: what a method says of them, and what a cache holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Coded:
    """What stands for the keys, or the values, of n tokens of each row.

    Attributes:
        tensors: by name, the first axis is that of the batch.
        decode: makes (B, H, n, d) float32 of them; what it needs besides is the same for every row.
    """

    tensors: Mapping[str, Tensor]
    decode: Callable[[Mapping[str, Tensor]], Tensor]

    def rows(self, pick: Callable[[Tensor], Tensor]) -> Coded:
        """The same of a batch whose rows ``pick`` takes."""
        return Coded({name: pick(x) for name, x in self.tensors.items()}, self.decode)

    def numbers(self) -> Tensor:
        """(B, H, n, d) float32."""
        return self.decode(self.tensors)


class Codec(Protocol):
    """How tokens are coded, ``group`` of them together; what is left over stays exact.

    ``residual``: tokens written after a prompt are coded once so many have come, exact until then; None: they stay exact.
    """

    @property
    def group(self) -> int: ...

    @property
    def residual(self) -> int | None: ...

    def keys(self, x: Tensor, valid: Tensor | None) -> Coded:
        """The keys ``x`` (B, H, n, d), as attention takes them, n a multiple of ``group``; ``valid``, (B, n) bool, which are
        real, None: all. What is not valid says nothing about the others, and is anything when it is read.
        """

    def values(self, x: Tensor, valid: Tensor | None, protected: bool) -> Coded:
        """The same of values; ``protected``: of tokens that are to lose less."""
