"""Evaluates cells, one after the other, on a model that is loaded once and wrapped anew."""

from __future__ import annotations

import gc
import textwrap
import time
import traceback
from dataclasses import dataclass
from typing import Any

from tokenreduce.adapters.upstream.lmms_eval import run_task, silence
from tokenreduce.adapters.upstream.seams import UpstreamChanged, misfit
from tokenreduce.scaling import BudgetUnreachable

from ..recipe import Recipe
from ..results import environment
from .cell import Cell
from .checks import check_cell
from .identity import model_folder
from .tasks import manager

MISFIT = "packages do not fit"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: ``result``, or ``error`` with kind, text, traceback.

    Kinds: refused, out of memory, packages do not fit, raised, died.
    """

    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class Evaluator:
    """Keeps the last model loaded."""

    def __init__(self) -> None:
        silence()
        self.loaded: tuple[Any, ...] | None = None
        self.lm: Any = None

    def evaluate(self, cell: Cell) -> Outcome:
        """Never raises for what the cell does: that is its outcome."""
        start = time.time()
        try:
            try:
                check_cell(cell)
            except ValueError as error:
                return Outcome(error=_told("refused", error))
            self._load(cell)
            try:
                self.lm.use(cell.recipe)
            except (ValueError, TypeError) as error:
                return Outcome(error=_told("refused", error))
            return Outcome(result={**self._run(cell), "seconds": round(time.time() - start, 3)})
        except Exception as error:
            return Outcome(error=_told(_kind(error), error))
        finally:
            gc.collect()
            _release()

    def _load(self, cell: Cell) -> None:
        if self.loaded == cell.loads:
            return
        self.loaded, self.lm = None, None  # the old model goes before the new one comes
        _release()
        from ..harness.model import build

        base = {} if cell.base is None else {"tr_base": cell.base}
        self.lm = build(
            False, pretrained=str(model_folder(cell.model)), batch_size=cell.batch_size, **base, **cell.model_args
        )
        self.lm.reused = self.lm.with_examples = True
        self.loaded = cell.loads

    def _run(self, cell: Cell) -> dict[str, Any]:
        from ..harness.first_token import first_token, whole_prefill
        from ..harness.scores import scores

        self.lm.measured = {}
        results = run_task(
            self.lm, cell.task, manager([cell.task], cell.include, self.lm.base), cell.limit, cell.batch_size, cell.seed
        )
        measured, examples = self.lm.measured, self.lm.examples
        self.lm.use(Recipe())
        return {
            **scores(results, cell.task, measured["samples"], self.lm.tasks),
            "measured": measured["summary"],
            "empty_answers": measured["empty_answers"],
            "first_token": first_token(self.lm.model, cell.recipe, examples.prompts, examples.unscaled),
            "whole_prefill": whole_prefill(self.lm.model, cell.recipe, examples.prompts, examples.unscaled),
            "pictures": examples.pictures,
            "not_drawn": examples.problems,
            "environment": environment(self.lm.model),
        }


def _kind(error: Exception) -> str:
    if isinstance(error, BudgetUnreachable) or isinstance(error.__cause__, BudgetUnreachable):
        return "refused"
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, (ImportError, UpstreamChanged)) or UpstreamChanged.__name__ in text:
        return MISFIT
    return "out of memory" if isinstance(error, MemoryError) or "OutOfMemoryError" in text else "raised"


def _told(kind: str, error: Exception) -> dict[str, Any]:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, ImportError):
        text = misfit(error)
    return {
        "kind": kind,
        "text": textwrap.shorten(text, 1000, placeholder=" ..."),
        "traceback": "".join(traceback.format_exception(error))[-6000:],
    }


def _release() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
