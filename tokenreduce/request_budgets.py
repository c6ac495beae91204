"""Another budget for a while: one for all that runs meanwhile, or one for each sample of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, cast

from tokenreduce.groups import ImageGroup
from tokenreduce.pipeline import Pipeline, Source
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import Stage

Keep = float | int | str | None
SHARED = ("projector", "llm", "cache")  # stages that see each image by itself


class CallSource(Source, Protocol):
    """A source at a stage that sees each image by itself; ``rows`` of the decoder belong to ``samples``, equally many to each."""

    @property
    def rows(self) -> int: ...

    @property
    def samples(self) -> int: ...


def with_budget(before: Pipeline, keep: Keep | Sequence[Keep]) -> Pipeline:
    """``before`` with ``keep`` in every method, or with ``keep[b]`` for sample b; None keeps everything.

    Errors: those of ``wrap`` for a budget; ``ValueError`` where it would move a method to other layers, and for budgets by
        sample of a method that acts where pictures of a call run together.
    """
    if isinstance(keep, (list, tuple)):
        return SampleBudgets(before, tuple(keep))
    value: dict[str, Any] = {"keep": 1.0 if keep is None else keep}
    changed = Pipeline([dataclasses.replace(m, **value) for m in before.methods], before.facts)
    places = [[(step.layer, step.needs) for _, step in p.steps if step.stage == "decode"] for p in (before, changed)]
    same = changed.listens == before.listens and places[0] == places[1]
    same = same and all(changed.layers(s) == before.layers(s) for s in ("llm", "cache"))
    inside = [(bool(p.layers("encoder")), p.enters) for p in (before, changed)]
    if not same or inside[0] != inside[1]:
        raise ValueError(f"keep={keep} would move a method to other layers; unwrap and wrap again with it")
    changed.stopwatch = before.stopwatch
    return changed


class SampleBudgets(Pipeline):
    """The steps of ``before``, with the budget ``keeps[b]`` for sample b; None: its pictures pass through untouched."""

    def __init__(self, before: Pipeline, keeps: tuple[Keep, ...]) -> None:
        super().__init__(before.methods, before.facts)
        together = next(((m, step.stage) for m, step in before.steps if step.stage not in SHARED), None)
        if together is not None:
            raise ValueError(
                f"keep={list(keeps)!r}: {together[0].name!r} acts at stage {together[1]!r}, where the samples of a call run "
                "together; allowed: one budget for all of them, or one call for each"
            )
        self.keeps = keeps
        self.stopwatch = before.stopwatch
        # 1 is one token and 1.0 all of them, but they are equal
        made = {(type(k), k): with_budget(before, k) for k in keeps if k is not None}
        self._own = [None if k is None else made[type(k), k] for k in keeps]

    def run(
        self,
        stage: Stage,
        layer: int | None,
        groups: list[ImageGroup],
        source: Source,
        decided: list[Reduction] | None = None,
    ) -> tuple[list[ImageGroup], list[Reduction], bool]:
        """As ``Pipeline.run``, sample by sample where their budgets differ.

        Errors: ``ValueError`` where there is not one budget for each sample of the call.
        """
        call = cast(CallSource, source)
        if call.samples != len(self.keeps):
            raise ValueError(
                f"keep={list(self.keeps)!r} holds {len(self.keeps)} budgets for a call of {call.samples} sample(s); allowed: one "
                "for each, None for a sample that is not to be reduced"
            )
        parts: dict[int, tuple[Pipeline | None, list[ImageGroup]]] = {}
        for group in groups:
            rows: dict[int, list[int]] = {}
            for i, row in enumerate(group.decoder_rows):
                own = self._own[row * call.samples // call.rows]
                parts.setdefault(id(own), (own, []))
                rows.setdefault(id(own), []).append(i)
            for key, index in rows.items():
                parts[key][1].append(group if len(rows) == 1 else group.rows(index))
        after: list[ImageGroup] = []
        done: list[Reduction] = []
        changed = False
        for pipeline, own_groups in parts.values():
            if pipeline is None:
                after += own_groups
                continue
            left, carried_out, moved = pipeline.run(
                stage, layer, own_groups, source, decided[len(done) :] if decided else None
            )
            after += left
            done += carried_out
            changed = changed or moved
        return after, done, changed
