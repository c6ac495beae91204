"""lmms-eval while it evaluates: what its running functions hold, and what it hands to a model beside its prompts.

| seam | seen |
| --- | --- |
| `simple_evaluate` makes the model first, then the tasks, from its local variable `task_manager` | 0.7.3 |
| `evaluate` asks for `lm.accelerator` before its first request; it holds `response_cache`, `cli_args` by then | 0.7.3 |
| a key of the response cache holds its `_model_fingerprint_hash`; `get_stats()["hits"]` are the answers it gave | 0.7.3 |
| `lm.clean()` is called once, after the last request | 0.7.3 |
| the command line runs in a function `cli_evaluate`, which catches every `Exception` | 0.7.3 |
| a request that only pads a rank says `__padding_only__` in its metadata | 0.7.3 |
| `lm.task_dict[task][split][document]` is what a model reads its documents from | 0.7.3 |
| a task's `args` are the command line's; generation settings are the one dictionary among a request's `arguments` | 0.7.3 |
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenreduce.adapters.upstream.lmms_eval import PACKAGE, outlines, task_of


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that begins: its response cache, None for none, and where the command line lets it write."""

    cache: Any
    output_path: Path | None


def beginning() -> Evaluation | None:
    """The evaluation, where it is lmms-eval's ``evaluate`` that called the caller, before its first request; else None."""
    frame = sys._getframe(2)
    if frame.f_code.co_name != "evaluate" or frame.f_globals.get("__name__") != f"{PACKAGE}.evaluator":
        return None
    if "canonical_reqtypes" in frame.f_locals:  # requests are being answered
        return None
    return Evaluation(frame.f_locals.get("response_cache"), _path(frame.f_locals.get("cli_args")))


def keep_apart(cache: Any, identity: str) -> None:
    """Let ``cache`` give and take answers under ``identity`` beside the model's name and arguments."""
    if identity not in cache.model_fingerprint:
        cache.model_fingerprint = f"{cache.model_fingerprint}|{identity}"
        cache._model_fingerprint_hash = hashlib.sha256(cache.model_fingerprint.encode()).hexdigest()[:16]


def answers_given(cache: Any) -> int:
    """How many answers came from ``cache`` so far."""
    return int(cache.get_stats()["hits"])


def own_copy(request: Any) -> Any:
    """``request`` with generation settings of its own, which a model may add to."""
    made = copy.copy(request)
    made.arguments = tuple(copy.deepcopy(a) if isinstance(a, dict) else a for a in request.args)
    return made


def output_path(requests: Sequence[Any]) -> Path | None:
    """The output path that the command line was called with; None for none, and for calls from Python."""
    return _path(getattr(task_of(requests[0]), "args", None)) if requests else None


def _path(called_with: Any) -> Path | None:
    path = getattr(called_with, "output_path", None)
    return Path(path) if path else None


def outlines_asked() -> dict[str, dict[str, Any]]:
    """Outlines of the tasks that lmms-eval is about to evaluate; none where a model is made for another reason."""
    found: dict[str, dict[str, Any]] = {}
    for asked in _evaluations():
        for task in asked["tasks"] or ():
            if isinstance(task, (str, dict)):
                found |= outlines(asked["task_manager"], task)
    return found


def prompt_as(base: str) -> None:
    """While lmms-eval is about to make its tasks: let these choose prompts and settings of generation for ``base``."""
    for asked in _evaluations():
        if hasattr(asked["task_manager"], "model_name"):
            asked["task_manager"].model_name = base


def _evaluations() -> Iterator[dict[str, Any]]:
    """The local variables of every ``simple_evaluate`` that is running and has its index of tasks."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "simple_evaluate" and frame.f_locals.get("task_manager") is not None:
            yield frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]


def is_padding(request: Any) -> bool:
    """Whether a request is there only so that all ranks have equally many."""
    return bool((request.metadata or {}).get("__padding_only__"))


def answers_of(generated: Sequence[Any]) -> list[Any]:
    """The answers in what ``generate_until`` of a model returned."""
    from lmms_eval.api.instance import unwrap_generation_output

    return [unwrap_generation_output(one)[0] for one in generated]


def under_command_line() -> bool:
    """Whether lmms-eval's own command line is running, which catches every ``Exception`` and goes on."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "cli_evaluate":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class DocumentRecorder:
    """A view of ``lm.task_dict`` that records the (task, document) pairs read through it; the rest is passed on."""

    def __init__(self, inner: Any, seen: list[tuple[str, int]], path: tuple[str, ...] = ()) -> None:
        self._inner, self._seen, self._path = inner, seen, path

    def __getitem__(self, key: Any) -> Any:
        found = self._inner[key]
        if len(self._path) < 2:  # task, split
            return DocumentRecorder(found, self._seen, (*self._path, key))
        if isinstance(key, int):
            self._seen.append((self._path[0], key))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._inner)


class PicturesOptional:
    """A processor to which an empty list of pictures or videos is none; lmms-eval's models hand it one for text alone."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        none = {name: None for name in ("images", "videos") if isinstance(kwargs.get(name), list) and not kwargs[name]}
        return self._inner(*args, **kwargs | none)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
