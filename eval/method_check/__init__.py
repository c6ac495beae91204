"""Whether a method keeps the contracts, tried on tiny models of real families, without a download.

>>> import tokenreduce as tr
>>> print(tr.check_method("uniform", families=["llava"], keep=0.5))
contract                                     llava
a full budget changes no bit                 right
...
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tokenreduce.method import Method
from tokenreduce.registry import make
from tokenreduce.tables import Table

if TYPE_CHECKING:
    from .trial import Result

__all__ = ["FAMILIES", "ContractViolation", "MethodCheck", "check_method"]

#: one grid behind a [CLS]; tiles; pictures and videos of any size on three axes of positions
FAMILIES = ("llava", "llava_next", "qwen2_5_vl")


@dataclass(frozen=True)
class MethodCheck:
    """What ``check_method`` tried of the method ``name``: a result per contract and family."""

    name: str
    results: list[Result]

    @property
    def wrong(self) -> list[Result]:
        """What does not hold: broken contracts, and, where every family refuses the method, the refusals."""
        broken = [one for one in self.results if one.verdict == "wrong"]
        return broken or (self.results if all(one.verdict == "refused" for one in self.results) else [])

    def table(self) -> Table:
        """A row per contract, a column per family."""
        rows: dict[str, dict[str, str]] = {}
        for one in self.results:
            rows.setdefault(one.contract, {"contract": one.contract})[one.family] = one.verdict
        return Table(rows.values())

    def reasons(self) -> list[str]:
        """Why something is wrong, refused or was left out, each reason once, with where; what is wrong comes first."""
        said: dict[tuple[int, str], dict[str, list[str]]] = {}
        for one in self.results:
            if one.detail:
                reason = (("wrong", "refused", "skipped").index(one.verdict), one.detail)
                said.setdefault(reason, {}).setdefault(one.contract, []).append(one.family)
        lines = []
        for (_, detail), places in sorted(said.items(), key=lambda item: item[0]):
            everything = len(places) == len({one.contract for one in self.results})
            families = ", ".join(next(iter(places.values())))
            where = families if everything else "; ".join(f"{what} ({', '.join(of)})" for what, of in places.items())
            lines.append(f"{where}: {detail}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"method": self.name, "results": [asdict(one) for one in self.results], "wrong": len(self.wrong)}

    def __str__(self) -> str:
        return "\n".join([str(self.table()), "", *(f"- {reason}" for reason in self.reasons())]).rstrip()

    __repr__ = __str__


class ContractViolation(AssertionError):
    """A method breaks a contract; ``check`` holds what was tried."""

    def __init__(self, check: MethodCheck) -> None:
        self.check = check
        super().__init__(f"method={check.name!r} does not keep the contracts\n\n{check}")


def check_method(
    method: str | Method | type[Method], *, families: Sequence[str] = FAMILIES, **parameters: Any
) -> MethodCheck:
    """Run ``method`` against the contracts on tiny models: a full budget changes no bit, text alone stays what it is, the
    budget is filled exactly, the wrapped model equals the bare one on the sequence that is really shorter, a batch equals its
    samples, generation is the same without a cache, and nothing is left after ``unwrap``. Some ten seconds on two cores.

    Args:
        method: a name, a class or an instance.
        families: names of tiny models; where a family refuses the method, that is noted, and counts as a failure only when all
            of them do.
        parameters: hyper-parameters of the method, such as ``keep=0.5``; tiny pictures have 16 tokens and less.

    Returns:
        The table of what was tried, with reasons; it prints itself.

    Errors: ``ContractViolation`` (an ``AssertionError``) with the same table when a contract is broken; ``ValueError`` for an
        unknown family, and what ``tr.wrap`` raises for a method that cannot be made.
    """
    from tokenreduce.eval import tiny_models

    from .trial import trials

    made = make(method, **parameters)
    for family in families:
        if family not in tiny_models.FAMILIES:
            near = difflib.get_close_matches(family, tiny_models.FAMILIES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"families={family!r} is unknown; known: {', '.join(tiny_models.FAMILIES)}.{hint}")
    check = MethodCheck(made.name, [result for family in families for result in trials(family, made)])
    if check.wrong:
        raise ContractViolation(check)
    return check
