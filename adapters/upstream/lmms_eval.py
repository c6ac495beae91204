"""lmms-eval as it is entered: its models, its tasks and how they are scored.

| seam | seen |
| --- | --- |
| entry point group `lmms_eval.models`, whose payload is a list of `ModelManifest` | 0.7.3 |
| `get_model`, `list_available_models`, and `create_from_arg_string` of a model class | 0.7.3 |
| `TaskManager(verbosity, include_path, include_defaults, model_name)`, its `all_tasks` | 0.7.3 |
| the index's `load_task_or_group(name)`, mappings of groups down to tasks, and `task_index[name]["yaml_path"]` | 0.7.3 |
| a task's `config`, a dataclass, and `eval_docs`, its documents in the order of evaluation | 0.7.3 |
| `task_index[name]`: its `type`, and `task`, the tasks of a tag; `load_yaml_config(path, mode="simple")` | 0.7.3 |
| `is_deterministic(output_type, generation_kwargs)` of the response cache | 0.7.3 |
| `simple_evaluate(model, tasks, task_manager, ..., torch_random_seed)` and what it returns | 0.7.3 |
| a request's arguments hold methods of its task | 0.7.3 |
| the task manager's `model_name` chooses among blocks per model in a task's settings, when tasks are made | 0.7.3 |
| a task's `aggregation()` is a function per metric; the built-in mean is `lmms_eval.api.metrics.mean` | 0.7.3 |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.adapters.upstream.video_reader import provide_decord

PACKAGE = "lmms_eval"
NAME = "tokenreduce"  # our model's, as in `lmms_eval --model tokenreduce`


def manifests(module: str) -> list[Any]:
    """What the entry point answers: classes ``Simple`` and ``Chat`` of ``module``, which is not imported yet."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(NAME, simple_class_path=f"{module}.Simple", chat_class_path=f"{module}.Chat")]


def model_class(name: str, force_simple: bool) -> type:
    """The class of lmms-eval's model ``name``. Errors: ``ValueError`` for an unknown one, and for our own."""
    from lmms_eval.models import get_model, list_available_models

    if name not in list_available_models(include_aliases=True) or name == NAME:
        raise ValueError(f"tr_base={name!r} is no model of lmms-eval; python -m lmms_eval models lists them")
    provide_decord()
    return get_model(name, force_simple=force_simple)


def task_manager(include: Sequence[str], defaults: bool, model: str | None = None) -> Any:
    """lmms-eval's index of the tasks in the folders ``include`` and, where ``defaults``, of its own thousands.

    ``model``: the name by which tasks choose prompts and settings of generation.
    """
    from lmms_eval.tasks import TaskManager

    silence()
    return TaskManager("ERROR", include_path=list(include), include_defaults=defaults, model_name=model)


def leaves(tasks: Any, name: str) -> dict[str, Any]:
    """The tasks below ``name`` of the index ``tasks``, by name; a group's, those of its groups, or the task itself."""

    def below(loaded: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        for key, found in loaded.items():
            if isinstance(found, dict):
                yield from below(found)
            else:
                yield str(key), found

    return dict(below(tasks.load_task_or_group(name)))


def configuration(task: Any) -> dict[str, Any]:
    """What lmms-eval made of a task's YAML file and all that it includes."""
    return dataclasses.asdict(task.config)


#: what the outline of a task says
OUTLINE = ("output_type", "generation_kwargs", "model_specific_generation_kwargs")


def outlines(tasks: Any, name: Any, changes: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """What the YAML files say of each task below ``name`` of the index ``tasks``, as far as it is in ``OUTLINE``.

    Neither data nor Python files are loaded. ``name`` may be an entry of a group, with ``changes`` to what a task says.
    """
    from lmms_eval.utils import load_yaml_config

    changes = dict(changes or {})
    if isinstance(name, dict):
        changes |= {key: name[key] for key in OUTLINE if key in name}
        name = name["task"]
    if isinstance(name, list):
        return {task: about for entry in name for task, about in outlines(tasks, entry, changes).items()}
    known = tasks.task_index.get(name, {"type": "task", "yaml_path": -1})
    own = {} if known["yaml_path"] == -1 else load_yaml_config(known["yaml_path"], mode="simple")
    said = {key: own[key] for key in OUTLINE if key in own} | changes
    if known["type"] in ("task", "python_task"):
        return {name: {"output_type": "generate_until", **said}}
    return outlines(tasks, own.get("task", []) if known["task"] == -1 else list(known["task"]), said)


def is_drawn(outline: Mapping[str, Any]) -> bool:
    """Whether answers to a task are drawn, so that they differ from seed to seed; by any model's own settings, too."""
    from lmms_eval.caching.response_cache import is_deterministic

    shared, own = outline.get("generation_kwargs") or {}, outline.get("model_specific_generation_kwargs") or {}
    blocks = [{}, *(block for block in own.values() if isinstance(block, dict))]
    return any(not is_deterministic(outline["output_type"], {**shared, **block}) for block in blocks)


def documents(task: Any) -> Any:
    """A task's documents, a ``datasets.Dataset`` or a list of mappings."""
    return task.eval_docs


def defining_folder(tasks: Any, name: str) -> Path | None:
    """The folder of the YAML file that defines ``name``; None for a tag, which only names tasks."""
    path = tasks.task_index[name]["yaml_path"]
    return None if path == -1 else Path(path).parent


def run_task(
    model: Any, task: str, tasks: Any, limit: int | None, batch_size: int, seed: int | None = None
) -> dict[str, Any]:
    """``task`` of the index ``tasks`` on a loaded model: lmms-eval's results with a row per question.

    ``seed``: of every generator but the one that picks examples for the prompt; None for lmms-eval's own.
    """
    from lmms_eval.evaluator import simple_evaluate

    seeds = {} if seed is None else dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"), seed)
    return simple_evaluate(
        model=model, tasks=[task], task_manager=tasks, limit=limit, batch_size=batch_size, bootstrap_iters=0, **seeds
    )


def silence() -> None:
    """No more of lmms-eval's own messages."""
    from loguru import logger

    logger.disable(PACKAGE)


def task_of(request: Any) -> Any:
    """The task that a request belongs to; None where its arguments do not tell."""
    owners = (getattr(argument, "__self__", None) for argument in request.args)
    return next((owner for owner in owners if hasattr(owner, "doc_to_visual")), None)


#: what a task may say per model
PER_MODEL = ("lmms_eval_specific_kwargs", "model_specific_generation_kwargs", "model_specific_target_kwargs")


def prompts_of_another(task: Any, base: str) -> str | None:
    """The name by which ``task`` chose, where it has a block for ``base`` and did not take it; None where all is well."""
    chose = getattr(task, "model_name", None)
    blocks = (getattr(task.config, name, None) or {} for name in PER_MODEL)
    return str(chose) if chose != base and any(base in block for block in blocks) else None


def aggregation_of(task: Any, metric: str) -> Callable[..., Any] | None:
    """The function that makes a task's score of the entries of its questions."""
    return task.aggregation().get(metric)


def is_mean(aggregation: Callable[..., Any]) -> bool:
    """Whether an aggregation is lmms-eval's own mean."""
    return (aggregation.__module__, getattr(aggregation, "__name__", "")) == ("lmms_eval.api.metrics", "mean")
