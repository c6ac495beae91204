"""Another budget, or another method, for a while: one for all that runs meanwhile, or one budget for each sample of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from tokenreduce.groups import ImageGroup
from tokenreduce.method import Method
from tokenreduce.pipeline import Pipeline, Source
from tokenreduce.reduction import Reduction
from tokenreduce.registry import make
from tokenreduce.tokens import Stage

Keep = float | int | str | None
SHARED = ("projector", "llm", "cache")  # stages that see each image by itself


class CallSource(Source, Protocol):
    """A source at a stage that sees each image by itself; ``rows`` of the decoder belong to ``samples``, equally many to each."""

    @property
    def rows(self) -> int: ...

    @property
    def samples(self) -> int: ...


def for_call(now: Pipeline, asked: Mapping[str, Any]) -> Pipeline:
    """What a call runs that was given ``tr_keep``, ``tr_method`` or both in ``asked``.

    Errors: those of ``with_method`` and ``with_budget``.
    """
    if asked.get("tr_method") is not None:
        now = with_method(now, asked["tr_method"], kept="tr_keep" in asked)
    return with_budget(now, asked["tr_keep"]) if "tr_keep" in asked else now


def with_method(before: Pipeline, method: str | Method | type[Method], kept: bool = False) -> Pipeline:
    """``method`` in the place of what ``before`` runs, with its budget where a name or a class says none.

    ``kept``: the budget follows.

    Errors: those of ``wrap``; ``ValueError`` where it acts at other places than the hooks were put on for, or reads what
        they do not hear.
    """
    own: dict[str, Any] = {}
    if not isinstance(method, Method) and not kept:
        if len(before.methods) != 1:
            raise ValueError(
                f"tr_method={method!r} in the place of {len(before.methods)} methods has no budget; say tr_keep=, or give an "
                "instance"
            )
        own["keep"] = before.methods[0].keep
    made = make(method, **own)
    changed = Pipeline([made], before.facts)
    names = " + ".join(m.name for m in before.methods)
    advice = f"unwrap, and wrap with {made.name!r}, or wrap with the one of them that reads more"
    unheard = changed.listens - before.listens
    if unheard:
        raise ValueError(
            f"tr_method={made.name!r} reads {', '.join(sorted(map(str, unheard)))}, which the model wrapped with {names} is not "
            f"listened to for; allowed: a method that reads no more than {names}. Else {advice}"
        )
    if _places(changed) != _places(before):
        raise ValueError(
            f"tr_method={made.name!r} acts at {_told(changed)}, the model is wrapped with {names}, which acts at "
            f"{_told(before)}; allowed: a method that acts at the same places. Else {advice}"
        )
    changed.stopwatch = before.stopwatch
    return changed


def with_budget(before: Pipeline, keep: Keep | Sequence[Keep]) -> Pipeline:
    """``before`` with ``keep`` in every method, or with ``keep[b]`` for sample b; None keeps everything.

    Errors: those of ``wrap`` for a budget; ``ValueError`` where it would move a method to other layers, and for budgets by
        sample of a method that acts where pictures of a call run together.
    """
    if isinstance(keep, (list, tuple)):
        return SampleBudgets(before, tuple(keep))
    value: dict[str, Any] = {"keep": 1.0 if keep is None else keep}
    changed = Pipeline([dataclasses.replace(m, **value) for m in before.methods], before.facts)
    if changed.listens != before.listens or _places(changed) != _places(before):
        raise ValueError(f"keep={keep} would move a method to other layers; unwrap and wrap again with it")
    changed.stopwatch = before.stopwatch
    return changed


def _places(pipeline: Pipeline) -> dict[str, Any]:
    """Where hooks are needed for ``pipeline``; inside a tower they are on every block, wherever it merges."""
    decodes = pipeline.decodes
    return {
        "decode": None if decodes is None else (decodes[1].layer, decodes[1].needs),
        "encoder": bool(pipeline.layers("encoder")),
        "pixels": pipeline.enters,
        "projector": bool(pipeline.at("projector")),
        **{stage: pipeline.layers(stage) for stage in ("llm", "cache")},
    }


def _told(pipeline: Pipeline) -> str:
    at = dict.fromkeys((step.stage, step.layer) for _, step in pipeline.steps)
    return ", ".join(f"stage {stage!r}" + ("" if layer is None else f" layer {layer}") for stage, layer in at)


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
