"""How many tokens a user wants to keep."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass


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
            hint = "To keep every token pass keep=1.0." if value == math.inf else ""
            if 1 < value < math.inf:
                hint = f"For {value:g} tokens per image pass the int keep={int(value)}."
            raise ValueError(f"keep={value:g} is outside (0, 1], the range of a fraction. {hint}".rstrip())

    @property
    def is_full(self) -> bool:
        """True for the fraction 1.0, which keeps every token whatever their number."""
        return isinstance(self.keep, float) and self.keep == 1.0

    def count(self, n: int) -> int:
        """Tokens kept out of ``n``: exact, at least 1 and at most ``n`` (0 for ``n == 0``)."""
        wanted = self.keep if isinstance(self.keep, int) else round(self.keep * n)
        return min(max(int(wanted), 1), n)
