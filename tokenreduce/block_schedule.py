"""Methods that act in every block of an encoder: ``keep`` says how many patches are left, or a schedule what leaves where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tokenreduce.budgets import Budget
from tokenreduce.method import Method


@dataclass(frozen=True, kw_only=True)
class BlockSchedule(Method, register=False):
    """``keep``, or one of the fields in ``schedules``, each with the value at which a block changes nothing."""

    schedules: ClassVar[Mapping[str, float]]

    keep: float | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("keep", *self.schedules) if getattr(self, name) is not None]
        if len(given) > 1:
            said = " and ".join(f"{name}={getattr(self, name)!r}" for name in given)
            raise ValueError(f"{said} both set the number of tokens; give one of them")

    @property
    def scheduled(self) -> tuple[str, Any] | None:
        """The schedule that is given, by name and value; None: ``keep`` says what is left."""
        return next(((name, value) for name in self.schedules if (value := getattr(self, name)) is not None), None)

    @property
    def budget(self) -> Budget:
        """The patches that leave the tower; all of them, as an upper bound, when a schedule decides."""
        if self.scheduled is not None:
            return Budget(1.0)
        return Budget(0.5 if self.keep is None else self.keep)

    def is_identity(self, n: int) -> bool:
        if self.scheduled is None:
            return self.budget.count(n) >= n
        name, value = self.scheduled
        # a pair is a number with what it is spread by
        values = value if isinstance(value, list) else value[:1] if isinstance(value, tuple) else [value]
        return all(own == self.schedules[name] for own in values)
