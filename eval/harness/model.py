"""One class for every model of lmms-eval: the base model's class with a reduction and a meter mixed in."""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

import tokenreduce as tr
from tokenreduce.adapters.upstream.lmms_eval import (
    DocumentRecorder,
    answers_of,
    is_padding,
    model_class,
    outlines_asked,
    output_path,
    prompt_as,
    prompts_of_another,
    task_of,
)

from ..recipe import Recipe
from ..results import write_json
from .examples import Examples
from .failures import EvaluationFailed, exit_on_error, expect_results
from .limits import check_batch_size, check_likelihoods
from .meter import Meter, summary, without_padding
from .settings import BASES, Settings, base_name


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

    def __init__(self, settings: Settings, base: str, arguments: dict[str, Any]) -> None:
        super().__init__(**arguments)
        self.settings, self.base, self.tasks = settings, base, {}
        self.use(settings.recipe)

    def use(self, recipe: Recipe) -> None:
        """Put ``recipe`` on the model instead of what is there. Errors: those of ``tr.wrap``; then nothing is on it."""
        if tr.is_wrapped(self.model):
            tr.unwrap(self.model)
        if recipe.methods:
            tr.wrap(self.model, *recipe.methods, images_as_video=recipe.images_as_video)
        self.recipe = recipe

    def clean(self) -> None:
        if not self.reused:
            super().clean()  # type: ignore[misc]

    def generate_until(self, requests: Sequence[Instance]) -> list[Any]:
        """The base model's answers, measured; fails where one of them is the mask of an error.

        Errors: ``EvaluationFailed`` (``SystemExit`` under the command line of lmms-eval, which catches everything else).
        """
        with exit_on_error():
            expect_results(requests)
            self.tasks = {r.task_name: task for r in requests if (task := task_of(r)) is not None}
            self._check_prompts()
            meter, documents = Meter(), self.task_dict
            if self.with_examples:
                self.examples = Examples(requests, getattr(self, "processor", getattr(self, "_image_processor", None)))
                meter.observe = self.examples.observe
            self.task_dict = DocumentRecorder(documents, meter.seen)
            try:
                with meter.watching(self.model):
                    # a base model may change the arguments it is given
                    answers = super().generate_until([copy.copy(r) for r in requests])  # type: ignore[misc]
            finally:
                self.task_dict = documents
            self._conclude(requests, answers_of(answers), meter)
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[Any]:
        """The base model's, on the reduced model; nothing is measured."""
        with exit_on_error():
            expect_results(requests)
            return super().loglikelihood(requests)  # type: ignore[misc]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[Any]:
        """The base model's, on the reduced model; nothing is measured."""
        with exit_on_error():
            expect_results(requests)
            return super().generate_until_multi_round(requests)  # type: ignore[misc]

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
            kinds = Counter(meter.errors).most_common(3)
            told = "; ".join(f"{count} x {error}" for error, count in kinds)
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
        part = {"rows": without_padding(meter.rows, wanted), "empty": empty}
        parts: list[Any] = [part]
        if torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, part)
        self._log(requests, parts)

    def _log(self, requests: Sequence[Instance], parts: list[dict[str, Any]]) -> None:
        rows = [row for part in parts for row in part["rows"]]
        self.measured = {
            "recipe": self.recipe.as_dict(),
            "name": str(self.recipe),
            "base": type(self).__mro__[2].__name__,
            "world_size": len(parts),
            "empty_answers": sum(part["empty"] for part in parts),
            "summary": summary(rows),
            "samples": rows,
        }
        file = self.settings.log
        folder = output_path(requests)
        if file is None and folder is not None:
            stem = f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
            names = (folder / f"{stem}{'' if n == 1 else f'-{n}'}_tokenreduce.json" for n in itertools.count(1))
            file = next(name for name in names if not name.exists())
        if file is not None and self.rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, self.measured)


def build(force_simple: bool, **arguments: Any) -> Any:
    """A model of lmms-eval with a reduction; ``arguments`` are those of the base class and ``tr_*``.

    Where the base class takes them and they are not given: ``device`` is a GPU if there is one, ``device_map`` the device
    (except for several processes on GPUs, where each takes its own), ``dtype`` float32 on a CPU.
    """
    settings, rest = Settings.taken_from(arguments)
    if rest.get("pretrained") == "demo":
        from ..demo import WEIGHTS

        rest["pretrained"] = str(WEIGHTS)
    if "pretrained" not in rest:
        raise ValueError("pretrained is missing; for example --model_args pretrained=llava-hf/llava-1.5-7b-hf, or demo")
    name = base_name(settings.base, str(rest["pretrained"]))
    check_batch_size(name, rest.get("batch_size", 1))
    if not force_simple or name in BASES.values():
        check_likelihoods(outlines_asked(), name)
    base = model_class(name, force_simple)
    known = inspect.signature(base).parameters
    device = str(rest.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    spread = int(os.environ.get("WORLD_SIZE", "1")) > 1 and device.startswith("cuda")
    defaults: dict[str, Any] = {"device": device}
    if not spread:
        defaults["device_map"] = device
    if device == "cpu":
        defaults["dtype"] = "float32"
    rest = {key: value for key, value in defaults.items() if key in known} | rest
    prompt_as(name)
    return type(f"Reduced{base.__name__}", (Reduced, base), {})(settings, name, rest)


class Chat(lmms):  # abstract: an instance is one of the base model's class, see __new__
    """``--model tokenreduce``."""

    is_simple = False

    def __new__(cls, **arguments: Any) -> Any:
        with exit_on_error():
            return build(cls.is_simple, **arguments)


class Simple(Chat):
    """``--model tokenreduce --force_simple``."""

    is_simple = True
