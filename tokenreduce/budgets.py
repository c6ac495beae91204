"""How many tokens a user wants to keep."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

AUTO = re.compile(r"auto(?::(?P<floor>[0-9.]*)-(?P<ceiling>[0-9.]*))?")


@dataclass(frozen=True)
class Budget:
    """A number of tokens to keep: a fraction of the tokens that enter a stage, a count per image, or what each image needs.

    A ``float`` in (0, 1] is a fraction f and resolves to ``max(1, round(f * N))``; an ``int`` >= 1 is a count.
    ``1`` is therefore one token and ``1.0`` is all of them. The text ``auto`` leaves the number to the method, within bounds
    where it names some, each a fraction or a count: ``auto:16-128``, ``auto:0.05-``, ``auto:-128``.

    Errors: ``TypeError`` for anything but a real number or text, ``ValueError`` outside the range.

    >>> Budget(0.25).count(576), Budget(64).count(576), Budget("auto:16-128").count(576)
    (144, 64, 128)
    """

    keep: float | int | str

    def __post_init__(self) -> None:
        keep = self.keep
        if isinstance(keep, str) and keep.startswith("auto"):
            low, high = self.bounds
            if low is not None and high is not None and type(low.keep) is type(high.keep) and low.keep > high.keep:  # type: ignore[operator]
                raise ValueError(
                    f"keep={keep!r} has a floor above its ceiling; allowed: auto:FLOOR-CEILING, as auto:16-128"
                )
            return
        if keep is None:
            raise TypeError(
                "keep=None is no budget; allowed: keep=1.0 for every token, a float in (0, 1] or an int >= 1, such as keep=0.25 "
                "or keep=64; left out, the method's own. For the model as it is, tr.unwrap(model)"
            )
        if isinstance(keep, (list, tuple)):
            raise TypeError(
                f"keep={keep!r} is a {type(keep).__name__}; allowed: one budget, such as keep=0.25. One for each sample of a "
                "call is with tr.budget(model, keep=[0.25, 1.0, 64]): around it"
            )
        if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
            raise TypeError(
                f"keep={keep!r} is a {type(keep).__name__}; allowed: a float in (0, 1] (fraction of the visual tokens), "
                "an int >= 1 (tokens per image), or the text 'auto'. For example keep=0.25 or keep=64."
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
    def adapts(self) -> bool:
        """Whether the number follows from what an image shows."""
        return isinstance(self.keep, str)

    @cached_property
    def bounds(self) -> tuple[Budget | None, Budget | None]:
        """Floor and ceiling of a number that adapts."""
        found = AUTO.fullmatch(self.keep) if isinstance(self.keep, str) else None
        if found is None:
            raise ValueError(
                f"keep={self.keep!r} is no budget; allowed in text: 'auto', or with bounds 'auto:FLOOR-CEILING', each a count, a "
                "fraction or nothing, such as 'auto:16-128'"
            )
        return _bound(found["floor"]), _bound(found["ceiling"])

    @property
    def is_full(self) -> bool:
        """True for the fraction 1.0, which keeps every token whatever their number."""
        return isinstance(self.keep, float) and self.keep == 1.0

    def count(self, n: int) -> int:
        """Tokens kept out of ``n``: exact, at least 1 and at most ``n`` (0 for ``n == 0``); the most where it adapts."""
        if isinstance(self.keep, str):
            ceiling = self.bounds[1]
            return n if ceiling is None else ceiling.count(n)
        wanted = self.keep if isinstance(self.keep, int) else round(self.keep * n)
        return min(max(int(wanted), 1), n)

    def least(self, n: int) -> int:
        """The fewest tokens that are kept out of ``n`` where the number adapts."""
        floor = self.bounds[0]
        return min(1, n) if floor is None else min(floor.count(n), self.count(n))

    def limit(self, counts: Tensor, n: int) -> Tensor:
        """``counts`` (B,) of ``n`` tokens that a method would keep, brought within bounds."""
        return counts.clamp(self.least(n), self.count(n))


def _bound(text: str | None) -> Budget | None:
    if not text:
        return None
    try:
        return Budget(float(text) if "." in text else int(text))
    except ValueError as error:
        raise ValueError(f"a bound of keep='auto': {error}") from None
