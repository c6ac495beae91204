"""Which tasks there are, without indexing the thousands of lmms-eval where that is not needed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenreduce.adapters.upstream.lmms_eval import task_manager


@cache
def _declared(place: Path) -> frozenset[str]:
    texts = [file.read_text(errors="replace") for file in place.rglob("*.yaml")]
    return frozenset(name for text in texts for name in re.findall(r"^task:\s*['\"]?([\w.-]+)", text, re.MULTILINE))


def defines(place: Path, task: str) -> bool:
    """Whether a folder holds a task."""
    return task in _declared(place)


def check(tasks: Sequence[str], include: Sequence[str]) -> None:
    """Raise ``ValueError`` for folders that are not there and tasks that nobody defines, with the nearest names."""
    for place in include:
        if not Path(place).is_dir():
            raise ValueError(f"include_path={place!r} is no folder; give the folder that holds the tasks' YAML files")
    elsewhere = [task for task in tasks if not any(defines(Path(place), task) for place in include)]
    if not elsewhere:
        return
    known = manager(elsewhere, include).all_tasks
    for task in elsewhere:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"task={task!r} is unknown to lmms-eval and to the folders of include_path; python -m lmms_eval tasks lists "
                f"them.{hint}"
            )


def manager(tasks: Sequence[str], include: Sequence[str], model: str | None = None) -> Any:
    """lmms-eval's index of tasks; of all its own only where ``tasks`` needs them. ``model``: whose prompts they choose."""
    own = all(any(defines(Path(place), task) for place in include) for task in tasks)
    return task_manager(include, defaults=not own, model=model)
