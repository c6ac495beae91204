"""``auto`` as a method: the best known for a family, a kind of input and a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenreduce.best_known_table import OWN, Row, rows_of
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts

KINDS = ("document", "photo", "video")


@dataclass(frozen=True, kw_only=True)
class Auto(Method, register=False):
    """The best known method for the model's family, the kind of input and the budget.

    It becomes that method when a model is wrapped, and ``tr.report``, the trace and the log (``tokenreduce``, INFO) say which it
    was and why. A method is compared at a budget where the tokens averaged over layers hold it.

    Args:
        kind: ``document``, ``photo`` or ``video``; None: ``video`` with ``images_as_video``, else ``photo``.
        table: ``table.csv`` of ``tokenreduce report``, of a sweep of your own; None: the table of this repository's sweeps, which
            ran on its small built-in model.
    """

    name = "auto"
    title = "best known"
    stages = ()
    looks_at = "a table"

    kind: Literal["document", "photo", "video"] | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in (None, *KINDS):
            raise ValueError(f"kind={self.kind!r}; allowed: {', '.join(map(repr, KINDS))}, or None")
        assert self.rows  # raises where it is no table

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of the table."""
        return rows_of(OWN if self.table is None else Path(self.table))

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        raise ValueError(
            "'auto' stands for a method of a table; wrap a model with it: tr.wrap(model, 'auto', keep=0.25)"
        )
