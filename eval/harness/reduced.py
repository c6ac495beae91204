"""One class for every model of lmms-eval: the base model's class with a reduction and a meter mixed in."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance

import tokenreduce as tr
from tokenreduce.adapters.upstream.lmms_eval import prompts_of_another, task_of
from tokenreduce.adapters.upstream.lmms_eval_run import (
    DocumentRecorder,
    Evaluation,
    PicturesOptional,
    answers_given,
    answers_of,
    beginning,
    is_padding,
    keep_apart,
    output_path,
    own_copy,
)

from ..recipe import Recipe
from ..results import write_json
from ..sweep.identity import code_identity, combined, model_hash
from .examples import Examples
from .failures import EvaluationFailed, exit_on_error, expect_results
from .meter import Meter, summary, without_padding
from .scaled import ScalingProcessor, processor_name, scale_pictures
from .settings import Settings


class Reduced:
    """Mixed in before a model class of lmms-eval, which brings ``model``, ``rank`` and ``task_dict``.

    Attributes:
        reused: keep the model when an evaluation ends; lmms-eval would otherwise delete it.
        with_examples: draw what is kept of a few questions; ``examples`` are those of the last evaluation.
        measured: what the last evaluation cost, as it is written to the log.
        base: lmms-eval's name of the model that does the work, by which tasks choose their prompts.
        tasks: lmms-eval's objects of the tasks of the last evaluation, by name.
    """

    reused = with_examples = False
    examples: Examples
    measured: dict[str, Any]
    base: str
    tasks: dict[str, Any]
    model: Any
    rank: int
    task_dict: Any
    scaling: ScalingProcessor | None

    def __init__(self, settings: Settings, base: str, arguments: dict[str, Any]) -> None:
        super().__init__(**arguments)
        self.settings, self.base, self.tasks, self.arguments = settings, base, {}, arguments
        self.rows: list[dict[str, Any]] = []
        self.cache: Any = None
        self.folder: Path | None = None
        self.empty = 0
        self.use(settings.recipe)

    @property
    def accelerator(self) -> Any:
        """The base model's; lmms-eval asks for it when an evaluation begins, before it looks into its response cache."""
        begun = beginning()
        if begun is not None:
            self._begin(begun)
        try:
            return self.__dict__["accelerator"]
        except KeyError:
            raise AttributeError("accelerator") from None

    @accelerator.setter
    def accelerator(self, value: Any) -> None:
        self.__dict__["accelerator"] = value

    def _begin(self, evaluation: Evaluation) -> None:
        with exit_on_error():
            expect_results(evaluation.output_path)
            self.rows, self.empty, self.cache, self.folder = [], 0, evaluation.cache, evaluation.output_path
            if self.cache is not None:
                recipe = {**self.recipe.as_dict(), **code_identity(self.recipe)}
                keep_apart(
                    self.cache, combined({"recipe": recipe, "model": model_hash(str(self.arguments["pretrained"]))})
                )

    def use(self, recipe: Recipe) -> None:
        """Put ``recipe`` on the model instead of what is there. Errors: those of ``tr.wrap``; then nothing is on it."""
        if tr.is_wrapped(self.model):
            tr.unwrap(self.model)
        self.scaling = scale_pictures(self, recipe.downscale)
        if recipe.on_model:
            tr.wrap(self.model, *recipe.on_model, images_as_video=recipe.images_as_video)
        self.recipe = recipe

    def clean(self) -> None:
        """An evaluation ends: its costs are logged."""
        with exit_on_error():
            self._log()
        if not self.reused:
            super().clean()  # type: ignore[misc]

    def generate_until(self, requests: Sequence[Instance]) -> list[Any]:
        """The base model's answers, measured; fails where one of them is the mask of an error.

        A prompt without pictures is text to every base model.

        Errors: ``EvaluationFailed`` (``SystemExit`` under the command line of lmms-eval, which catches everything else).
        """
        with exit_on_error():
            self._expect(requests)
            self.tasks = {r.task_name: task for r in requests if (task := task_of(r)) is not None}
            self._check_prompts()
            meter, documents = Meter(), self.task_dict
            if self.with_examples:
                self.examples = Examples(requests, getattr(self, processor_name(self) or "", None))
                meter.observe = self.examples.observe
            if self.scaling is not None:
                meter.unscaled, self.scaling.problem = self.scaling.unscaled, None
            self.task_dict = DocumentRecorder(documents, meter.seen)
            try:
                with meter.watching(self.model), self._without_pictures():
                    answers = super().generate_until([own_copy(r) for r in requests])  # type: ignore[misc]
            except Exception as error:
                if isinstance(error, (ImportError, MemoryError, EvaluationFailed)) or not meter.seen:
                    raise
                raise EvaluationFailed(f"{type(error).__name__}: {error}{_documents(meter.seen)}") from error
            finally:
                self.task_dict = documents
            if self.scaling is not None and self.scaling.problem is not None:  # the base model went on
                raise EvaluationFailed(str(self.scaling.problem)) from self.scaling.problem
            self._conclude(requests, answers_of(answers), meter)
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[Any]:
        """The base model's, on the reduced model; nothing is measured."""
        with exit_on_error():
            self._expect(requests)
            return super().loglikelihood(requests)  # type: ignore[misc]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[Any]:
        """The base model's, on the reduced model; nothing is measured."""
        with exit_on_error():
            self._expect(requests)
            return super().generate_until_multi_round(requests)  # type: ignore[misc]

    def _expect(self, requests: Sequence[Instance]) -> None:
        self.folder = output_path(requests)
        expect_results(self.folder)

    @contextmanager
    def _without_pictures(self) -> Iterator[None]:
        """Let the base model's processor take prompts without pictures."""
        name = processor_name(self)
        if name is None:
            yield
            return
        processor = getattr(self, name)
        setattr(self, name, PicturesOptional(processor))
        try:
            yield
        finally:
            setattr(self, name, processor)

    def _check_prompts(self) -> None:
        for name, task in self.tasks.items():
            chose = prompts_of_another(task, self.base)
            if chose is not None:
                raise EvaluationFailed(
                    f"task {name} has prompts or settings for {self.base} and took those for {chose!r}, so scores would not be "
                    f"the model's; give simple_evaluate a TaskManager(model_name={self.base!r})"
                )

    def _conclude(self, requests: Sequence[Instance], answers: list[Any], meter: Meter) -> None:
        empty = sum(not str(a).strip() for a in answers)
        if meter.errors:
            kinds = Counter(error for error, _ in meter.errors).most_common(3)
            first = {error: _documents(seen) for error, seen in reversed(meter.errors)}
            told = "; ".join(f"{count} x {error}{first[error]}" for error, count in kinds)
            raise EvaluationFailed(
                f"{len(meter.errors)} of {len(requests)} prompts raised, so scores would be wrong: {told}"
            )
        if len(meter.rows) < len(requests):
            raise EvaluationFailed(
                f"{len(requests) - len(meter.rows)} of {len(requests)} answers never came from the model's generate(): "
                "the base model caught an error before it (a file it could not read?), or it generates in another way. "
                "See its messages above; tr_base chooses another base model"
            )
        if requests and empty == len(requests):
            raise EvaluationFailed(
                f"all {empty} answers are empty; try the base model without a method, and a larger tr_keep"
            )
        padding = [is_padding(r) for r in requests]
        wanted = Counter((r.task_name, r.doc_id) for r, pad in zip(requests, padding) if not pad)
        self.rows += without_padding(meter.rows, wanted)
        self.empty += empty

    def _log(self) -> None:
        """Collect what every process measured, and write it down where there is a place for it."""
        cached = 0 if self.cache is None else answers_given(self.cache)
        part = {"rows": self.rows, "empty": self.empty, "cached": cached}
        parts: list[Any] = [part]
        self.rows, self.empty, self.cache = [], 0, None
        if torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, part)
        rows = [row for part in parts for row in part["rows"]]
        cached = sum(part["cached"] for part in parts)
        if not rows and not cached:
            return
        if cached and self.rank == 0:
            whole = len(rows) + cached
            told = f"costs were measured for {len(rows)} of {whole} answers; the others came from the response cache"
            print(f"tokenreduce: {told}", file=sys.stderr, flush=True)
        self.measured = {
            "recipe": self.recipe.as_dict(),
            "name": str(self.recipe),
            "base": type(self).__mro__[2].__name__,
            "world_size": len(parts),
            "empty_answers": sum(part["empty"] for part in parts),
            "answers_from_cache": cached,
            "summary": summary(rows),
            "samples": rows,
        }
        file = self.settings.log
        folder = self.folder
        if file is None and folder is not None:
            stem = f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
            names = (folder / f"{stem}{'' if n == 1 else f'-{n}'}_tokenreduce.json" for n in itertools.count(1))
            file = next(name for name in names if not name.exists())
        if file is not None and self.rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, self.measured)


def _documents(seen: Sequence[tuple[str, int]]) -> str:
    """Which questions were being asked, as a tail of a message; nothing where that is not known."""
    ids = ", ".join(f"{task} {doc_id}" for task, doc_id in dict.fromkeys(seen))
    return f" (at {ids})" if ids else ""
