"""Which tasks there are, without indexing the thousands of lmms-eval where that is not needed, and what determines them."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenreduce.adapters.upstream.lmms_eval import (
    configuration,
    defining_folder,
    documents,
    is_drawn,
    leaves,
    outlines,
    task_manager,
)

from .hashes import combined, folder_hashes

BATCH = 256  # documents hashed at a time


def check(tasks: Sequence[str], include: Sequence[str]) -> None:
    """Raise ``ValueError`` for folders that are not there and tasks that nobody defines, with the nearest names."""
    for place in include:
        if not Path(place).is_dir():
            raise ValueError(f"include_path={place!r} is no folder; give the folder that holds the tasks' YAML files")
    known = manager(tasks, include).all_tasks
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"task={task!r} is unknown to lmms-eval and to the folders of include_path; python -m lmms_eval tasks lists "
                f"them.{hint}"
            )


def manager(tasks: Sequence[str], include: Sequence[str], model: str | None = None) -> Any:
    """lmms-eval's index of tasks; of all its own only where ``tasks`` needs them. ``model``: whose prompts they choose."""
    own = task_manager(include, defaults=False, model=model)
    return own if set(tasks) <= set(own.all_tasks) else task_manager(include, defaults=True, model=model)


@cache
def outlines_of(task: str, include: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What the YAML files of the tasks below ``task`` say of their kind and of generation, by task."""
    return outlines(manager([task], include), task)


def has_drawn_answers(task: str, include: tuple[str, ...]) -> bool:
    """Whether answers to ``task``, or to one of that group, differ from seed to seed. Errors: those of ``check``."""
    check([task], include)
    return any(map(is_drawn, outlines_of(task, include).values()))


@cache
def task_identity(task: str, include: tuple[str, ...]) -> dict[str, Any]:
    """What determines the questions of ``task`` and how they are scored, as hashes.

    ``files``: every file of the folder that defines it, below ``include`` of that whole folder, by relative path. ``leaves``:
    for each task below it lmms-eval's parsed configuration, its documents and their number. A task that cannot be
    loaded has ``problem`` instead: its cell runs and fails with the reason.
    """
    try:
        index = manager([task], include)
        below = leaves(index, task)
        folders = {_root(folder, include) for name in (task, *below) if (folder := _folder(index, name)) is not None}
        return {
            "files": combined({str(n): folder_hashes(folder) for n, folder in enumerate(sorted(folders))}),
            "leaves": {name: _leaf(found) for name, found in sorted(below.items())},
        }
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _folder(index: Any, name: str) -> Path | None:
    return defining_folder(index, name) if name in index.all_tasks else None


def _root(folder: Path, include: Sequence[str]) -> Path:
    """The folder of ``include`` that holds ``folder``, whose tasks may share files; else ``folder`` itself."""
    holders = (Path(place).resolve() for place in include)
    return next((place for place in holders if folder.resolve().is_relative_to(place)), folder)


def _leaf(task: Any) -> dict[str, Any]:
    found = {key: value for key, value in configuration(task).items() if key != "dataset_kwargs"}  # the documents count
    about = documents(task)
    return {
        "configuration": hashlib.sha256(json.dumps(found, sort_keys=True, default=_described).encode()).hexdigest(),
        "documents": len(about),
        "data": content_hash(about),
    }


def _described(value: Any) -> str:
    """Text that is the same in every process."""
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return str(getattr(value, "__qualname__", type(value).__name__))
    return str(value)


def content_hash(rows: Any) -> str:
    """SHA-256 of the rows of a ``datasets.Dataset``, pictures as the bytes they are stored as, or of a list of mappings."""
    found = hashlib.sha256()
    if not hasattr(rows, "with_format"):
        found.update(json.dumps(list(rows), sort_keys=True, default=_described).encode())
        return found.hexdigest()
    for table in rows.with_format("arrow").iter(BATCH):
        for batch in table.replace_schema_metadata(None).combine_chunks().to_batches():
            found.update(batch.serialize())
    return found.hexdigest()
