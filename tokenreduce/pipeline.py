"""Methods joined to the places where they act: the one loop that shows tokens to methods and applies their plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Protocol

from tokenreduce.encoder_steps import EncoderStep, encoder_steps
from tokenreduce.groups import ImageGroup
from tokenreduce.learned_method import LearnedMethod
from tokenreduce.method import Method, Step
from tokenreduce.methods_together import check_together
from tokenreduce.model_facts import ModelFacts
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.projection import Projector
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import largest_remainder
from tokenreduce.signals import ProjectorInput, Signal
from tokenreduce.step_checks import (
    check_count,
    check_method,
    check_plan,
    check_step,
    is_bounded,
    substitutes_of,
)
from tokenreduce.stopwatch import Stopwatch
from tokenreduce.tokens import STAGES, Stage, VisualTokens
from tokenreduce.unmerging import unmerges
from tokenreduce.views import reduce_views, view_of


class Source(Protocol):
    """Where methods' signals come from."""

    def look(self, signal: Signal, group: ImageGroup) -> Any:
        """The value of ``signal`` for ``group``, aligned as its ``axis`` says."""

    def projector(self, group: ImageGroup) -> Projector:
        """What makes features of the rows of ``group`` that the signal ``ProjectorInput`` shows."""


class Pipeline:
    """The steps of one or several methods, in the order a visual token meets them.

    Errors: ``ValueError`` when a stage or a layer is not one the model can serve, or a count exceeds the tokens of an
    image whose size is fixed; raised here, before anything is attached.
    """

    stopwatch = PerThread(Stopwatch)

    def __init__(self, methods: Sequence[Method], facts: ModelFacts) -> None:
        self.methods = tuple(methods)
        self.facts = facts
        self._encoder_steps: dict[Any, dict[int, list[EncoderStep]]] = {}
        self.substitutes: tuple[str, ...] = ()  # what stands in for something the model lacks, as the report says it
        self._bounded: list[Method] = []
        steps: list[tuple[Method, Step]] = []
        for method in self.methods:
            check_method(method, facts)
            method.plan(facts)  # raises where the grid is known and the budget does not fit
            self.substitutes += substitutes_of(method, facts)
            planned = method.plan(dataclasses.replace(facts, tower_grid=None))
            check_plan(method.name, planned)
            for step in planned:
                check_step(method.name, step, facts)
                steps.append((method, step))
            if is_bounded(planned):
                self._bounded.append(method)
        check_together(steps)
        self.learned = {i: m.learned(facts) for i, m in enumerate(self.methods) if isinstance(m, LearnedMethod)}
        self.unmerges = unmerges(self.methods, facts)
        # Stages run in the order of the model; within a stage and layer, in the order the user gave.
        self.steps = sorted(steps, key=lambda item: (STAGES.index(item[1].stage), item[1].layer or 0))

    def at(self, stage: Stage, layer: int | None = None) -> list[tuple[Method, Step]]:
        return [(m, s) for m, s in self.steps if s.stage == stage and s.layer == layer]

    def layers(self, stage: Stage) -> tuple[int, ...]:
        return tuple(sorted({s.layer for _, s in self.steps if s.stage == stage and s.layer is not None}))

    def encoder_steps(self, grid: tuple[int, int], shares: tuple[int | None, ...] = ()) -> dict[int, list[EncoderStep]]:
        """What ``encoder_steps`` says of these methods, worked out once."""
        if (grid, shares) not in self._encoder_steps:
            self._encoder_steps[grid, shares] = encoder_steps(self.methods, self.facts, grid, shares)
        return self._encoder_steps[grid, shares]

    def view_shares(self, sizes: Sequence[int]) -> list[tuple[int | None, ...]]:
        """Per view of an image with ``sizes`` tokens, what ``encoder_steps`` wants: the budget shared among them, exactly.

        Errors: ``ValueError`` when a view would be left without a token, which merging cannot do.
        """
        spread_here = {id(m) for m, step in self.steps if step.stage == "encoder" and step.amount is None}
        columns: list[list[int | None]] = []
        for method in self.methods:
            if id(method) not in spread_here:
                columns.append([None] * len(sizes))
                continue
            k = method.budget.count(sum(sizes))
            shares = largest_remainder([Fraction(k * size, sum(sizes)) for size in sizes], k)
            if any(share == 0 < size for share, size in zip(shares, sizes)):
                raise ValueError(
                    f"keep={k} tokens of an image that the tower sees in {sum(size > 0 for size in sizes)} views: merging "
                    "inside the tower leaves at least one of each; ask for more, or pass at='projector'"
                )
            columns.append(list(shares))
        return list(zip(*columns))

    @property
    def enters(self) -> int | None:
        """Vision block in front of which units are left out; None: nowhere."""
        return next((step.layer or 0 for _, step in self.steps if step.stage == "pixels"), None)

    @property
    def by_layer(self) -> bool:
        """Whether single decoder layers have to be looked after."""
        return self.unmerges or any(step.stage in ("llm", "cache", "decode") for _, step in self.steps)

    @property
    def listens(self) -> frozenset[Signal]:
        """Signals of a prompt that need a module to be listened to; inside an encoder, keys are heard in every block anyway."""
        return frozenset(s for _, step in self.steps if step.stage not in ("encoder", "decode") for s in step.needs)

    @property
    def decodes(self) -> tuple[Method, Step] | None:
        """The step at which a new token chooses what it reads, with its method; None: it reads everything."""
        return next(((method, step) for method, step in self.steps if step.stage == "decode"), None)

    @property
    def codes(self) -> tuple[int, Step] | None:
        """The step whose codec holds the cache, with the number of its method; None: the cache holds what comes."""
        return next(((self.number(method), step) for method, step in self.steps if step.codec is not None), None)

    def number(self, method: Method) -> int:
        """The place of ``method`` among the methods, by which it finds its notes."""
        return next(i for i, other in enumerate(self.methods) if other is method)

    @property
    def ranks_by_text(self) -> bool:
        """Whether a method looks at the text, or at what the language model attends to, and so at the question."""
        return any(signal.part == "llm" for signal in self.listens)

    def run(
        self,
        stage: Stage,
        layer: int | None,
        groups: list[ImageGroup],
        source: Source,
        decided: list[Reduction] | None = None,
    ) -> tuple[list[ImageGroup], list[Reduction], bool]:
        """Pass ``groups`` (with their features) through the steps of a place.

        Returns the groups, the reductions carried out, in order, and whether any changed anything. ``decided``, the
        reductions of an earlier pass over the same prompt, are carried out again without asking the methods.
        """
        done: list[Reduction] = []
        changed = False
        for method, step in self.at(stage, layer):
            if step.survivors_of is not None:
                continue
            passed: list[ImageGroup] = []
            number = self.number(method)
            parted = stage in ("pixels", "projector")  # inside the language model a method sees the whole image
            for group in self._alike(groups, method) if parted else groups:
                if not acts(method, group):
                    passed.append(group)
                    continue
                assert group.features is not None
                with self.stopwatch(group.features.device):
                    signals = {} if decided else {signal: source.look(signal, group) for signal in step.needs}
                    given = {"amount": step.amount, "signals": signals, "learned": self.learned.get(number)}
                    tokens = group.tokens(number, stage, layer, **given)
                    if ProjectorInput() in tokens.signals:
                        tokens.projector = source.projector(group)
                    reduction = decided[len(done)] if decided else self._ask(method, tokens, group, parted)
                    trained = number in self.learned and getattr(self.learned[number], "training", False)
                    if not decided and not trained and any(method is bounded for bounded in self._bounded):
                        check_count(method, reduction, group.num_tokens, group.layout)
                    done.append(reduction)
                    group = group.noting(number, reduction)
                    if reduction.does_nothing(group.num_tokens):
                        passed.append(group)
                    else:
                        passed += group.apply(reduction, stage, layer, method.name)
                        changed = True
            groups = passed
        return groups, done, changed

    @staticmethod
    def _alike(groups: list[ImageGroup], method: Method) -> list[ImageGroup]:
        """``groups`` such that within each, all images have equally many tokens of every view."""
        alike: list[ImageGroup] = []
        for group in groups:
            views = group.layout.split(method.sees)
            if len(views) == 1 or group.num_tokens == group.layout.num_tokens or not acts(method, group):
                alike.append(group)
                continue
            rows: dict[tuple[int, ...], list[int]] = {}
            for i, row in enumerate(view_of(views, group.source, group.assign).tolist()):
                rows.setdefault(tuple(row.count(p) for p in range(len(views))), []).append(i)
            alike += [group] if len(rows) == 1 else [group.rows(index) for index in rows.values()]
        return alike

    @staticmethod
    def _ask(method: Method, tokens: VisualTokens, group: ImageGroup, parted: bool) -> Reduction:
        views = group.layout.split(method.sees)
        if not parted or len(views) == 1:
            return method.checked(tokens)
        if tokens.num_tokens == group.layout.num_tokens:
            sizes = [len(own) for _, own in views]
            return reduce_views(method, tokens, views, view_of(views, group.source, group.assign), sizes)
        of = view_of(views, group.source, group.assign)
        first = of[0].tolist()
        return reduce_views(method, tokens, views, of, [first.count(p) for p in range(len(views))])


def acts(method: Method, group: ImageGroup) -> bool:
    """Whether ``method`` has anything to do with the images of ``group``."""
    return group.num_tokens > 0 and group.layout.medium in method.media and not method.is_identity(group.num_tokens)


class ActivePipeline:
    """The pipeline of a wrapped model, and the one that a thread runs instead for a while.

    ``asked``: what makes a pipeline of the words in a call that are about the reduction.
    """

    instead = PerThread[Pipeline | None](nothing)
    asked: Callable[[Pipeline, Mapping[str, Any]], Pipeline]

    def __init__(self, own: Pipeline) -> None:
        self.own = own

    @property
    def now(self) -> Pipeline:
        return self.instead or self.own

    @contextmanager
    def exchanged(self, pipeline: Pipeline) -> Iterator[None]:
        """Let this thread run ``pipeline`` for the length of a ``with`` block."""
        outer, self.instead = self.instead, pipeline
        try:
            yield
        finally:
            self.instead = outer
