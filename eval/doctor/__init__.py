"""Whether the installed libraries fit: every family at every stage, against sequences that are really shorter.

>>> import tokenreduce as tr
>>> found = tr.doctor("llava")
>>> [check.verdict for check in found.checks]
['right', 'right', 'right', 'right', 'right']
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tokenreduce as tr
from tokenreduce.tables import Table

if TYPE_CHECKING:
    from .check import Check

__all__ = ["Diagnosis", "doctor"]


@dataclass(frozen=True)
class Diagnosis:
    """What was found: ``versions`` of the libraries (rows of ``tr.versions()``), and a check per family and stage.

    ``faults``: of the bare models, in words.
    """

    versions: Table
    checks: list[Check]
    faults: tuple[str, ...] = ()

    @property
    def wrong(self) -> list[Check]:
        """The checks whose answers differ from those of the shortened sequence, or that failed with a foreign error."""
        return [check for check in self.checks if check.verdict == "wrong"]

    def table(self) -> Table:
        """A row per family, a column per stage."""
        stages = dict.fromkeys((check.stage for check in self.checks), "-")
        rows: dict[str, dict[str, str]] = {}
        for check in self.checks:
            rows.setdefault(check.family, {"family": check.family, **stages})[check.stage] = check.verdict
        return Table(rows.values())

    def reasons(self) -> list[str]:
        """Why something is refused or wrong, each reason once, with where it was given; what is wrong comes first."""
        where: dict[tuple[bool, str], list[str]] = {}
        for check in self.checks:
            if check.detail:
                text = check.detail.replace(f"a {check.family} model", "such a model")
                where.setdefault((check.verdict == "refused", text), []).append(f"{check.family} {check.stage}")
        return [
            f"{', '.join(places)}: {text}" for (_, text), places in sorted(where.items(), key=lambda item: item[0][0])
        ]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        checks = [asdict(check) for check in self.checks]
        return {"versions": self.versions, "checks": checks, "wrong": len(self.wrong), "faults": self.faults}

    def __str__(self) -> str:
        return "\n".join([str(self.versions), "", str(self.table()), "", *self.reasons(), *self.faults])


def doctor(family: str | None = None, progress: Callable[[str], None] = lambda family: None) -> Diagnosis:
    """Wrap a tiny model of each family with one method per stage and compare it with the sequence that is really shorter.

    Logits, and greedily written tokens, of a batch with two pictures, one and none, padded on the left; under a minute on
    two cores, without a download.

    Args:
        family: a single family, by the names in the table; None for all.
        progress: is told each family before its turn.

    Errors: ``ValueError`` for an unknown family.
    """
    import torch

    from tokenreduce.eval import tiny_models

    from .check import checks
    from .faults import faults as faults_of

    known = [*tiny_models.FAMILIES, *tiny_models.BESIDE]
    if family is not None and family not in known:
        near = difflib.get_close_matches(family, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"family={family!r} is unknown; known: {', '.join(known)}.{hint}")
    found, faults, threads = [], [], torch.get_num_threads()
    torch.set_num_threads(1)  # several cost these small products more than they give
    try:
        for key in known if family is None else [family]:
            progress(key)
            found += checks(key)
            faults += faults_of(key)
    finally:
        torch.set_num_threads(threads)
    return Diagnosis(tr.versions(), found, tuple(faults))
