"""Cells of a sweep put together for a table: told apart by name, of one state of the code, seeds joined."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from ..metrics import Metric
from ..recipe import UNREDUCED, Recipe
from ..statistics import mean_replicates
from ..sweep.store import DONE

Cell = Mapping[str, Any]
OWN = ("recipe", "method_files", "seed")  # of a cell's identity, what may differ between rows of one table


@dataclass(frozen=True)
class Point:
    """What is on the model at one budget, evaluated with one or several seeds: one cell each. ``name`` leaves seeds out."""

    name: str
    keep: str
    cells: tuple[Cell, ...]

    @property
    def done(self) -> bool:
        return all(cell["status"] == DONE for cell in self.cells)

    @property
    def is_random(self) -> bool:
        return self.name == "random"

    @property
    def is_unreduced(self) -> bool:
        return self.name == UNREDUCED

    def mean(self, quantity: str, task: str) -> float | None:
        """A measured quantity, as a mean over seeds, for the questions of ``task``, or of the whole cell where that is one."""
        found = [_measured(cell["result"], quantity, task) for cell in self.cells]
        return None if None in found or not found else float(np.mean([x for x in found if x is not None]))


@dataclass(frozen=True)
class Table:
    """Points of one model on one task of lmms-eval; ``name`` and ``tasks``: what the rows show, leaves and groups."""

    model: str
    task: str
    points: tuple[Point, ...]
    left_out: tuple[str, ...] = ()  # cells of an earlier state of weights, questions or code, by name

    @property
    def shown(self) -> list[tuple[str, str]]:
        """Pairs of a task and one of its metrics, groups first, in the task's order."""
        pairs = [
            (name, metric)
            for point in self.points
            if point.done
            for name, about in scored(point.cells[0]).items()
            for metric in about["metrics"]
        ]
        return list(dict.fromkeys(pairs))

    def metric(self, task: str, name: str) -> Metric:
        """A metric that is a mean of entries between 0 and 1 in every cell is a share."""
        cells = [cell for point in self.points if point.done for cell in point.cells if name in metrics_of(cell, task)]
        first = metrics_of(cells[0], task)[name]
        entries = [e for cell in cells for q in asked(cell, task) if (e := q["scores"].get(name)) is not None]
        mean = all("mean" in metrics_of(cell, task)[name]["aggregation"].split(" ")[0:1] for cell in cells)
        share = mean and bool(entries) and min(entries) >= 0 and max(entries) <= 1
        return Metric(name, first["higher_is_better"], first["aggregation"], share)


def tables(cells: Sequence[Cell]) -> Iterator[Table]:
    """The tables of a sweep, by model and task."""
    names = labels(cells)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((names[loaded(cell)], cell["cell"]["task"]), []).append(cell)
    for (model, task), own in sorted(groups.items()):
        states: dict[str, list[Cell]] = {}
        for cell in own:
            state = {name: value for name, value in cell["identity"].items() if name not in OWN}
            states.setdefault(json.dumps(state, sort_keys=True), []).append(cell)
        newest = max(states.values(), key=lambda found: max(cell["written"] for cell in found))
        earlier = [cell for found in states.values() if found is not newest for cell in found]
        yield Table(model, task, tuple(_points(newest)), tuple(_told(cell) for cell in earlier))


def labels(cells: Sequence[Cell]) -> dict[tuple[Any, ...], str]:
    """What each model that was loaded is called: the end of its path that no other has, and the settings that differ."""
    models = {cell["cell"]["model"] for cell in cells}
    found = {}
    for cell in cells:
        about = cell["cell"]
        alike = [other["cell"] for other in cells if other["cell"]["model"] == about["model"]]
        told = []
        for name in ("base", "limit", "batch_size"):
            if len({other[name] for other in alike if other["task"] == about["task"]}) > 1:
                told.append(f"{name}={about[name]}")
        for name in sorted({name for other in alike for name in other["model_args"]}):
            if len({str(other["model_args"].get(name)) for other in alike}) > 1:
                told.append(f"{name}={about['model_args'].get(name, 'default')}")
        shown = _unique_end(about["model"], models)
        found[loaded(cell)] = f"{shown} ({', '.join(told)})" if told else shown
    return found


def scored(cell: Cell) -> Mapping[str, Any]:
    """The tasks of a cell with their metrics; also of a cell from before these were kept, whose metric is a mean."""
    result = cell["result"]
    if "tasks" in result:
        return result["tasks"]
    higher = result.get("higher_is_better", True)
    metrics = {result["metric"]: {"value": result["score"], "higher_is_better": higher, "aggregation": "mean"}}
    about = {"version": None, "questions": len(result["questions"]), "metrics": metrics if result["metric"] else {}}
    return {cell["cell"]["task"]: about}


def metrics_of(cell: Cell, task: str) -> Mapping[str, Any]:
    return scored(cell).get(task, {"metrics": {}})["metrics"]


def asked(cell: Cell, task: str) -> list[dict[str, Any]]:
    """The questions of a task or of a group's tasks, each with ``scores``."""
    leaves = scored(cell).get(task, {}).get("group", [task])
    own = [q for q in cell["result"]["questions"] if q.get("task", task) in leaves]
    if "tasks" in cell["result"]:
        return own
    metric = cell["result"]["metric"]
    return [{**q, "scores": {} if q["score"] is None else {metric: q["score"]}} for q in own]


def same_questions(one: Cell, other: Cell, task: str) -> bool:
    first, second = ([(q["doc_id"], q.get("cluster")) for q in asked(cell, task)] for cell in (one, other))
    return first == second


def replicates(cell: Cell, task: str, metric: str) -> np.ndarray | str:
    """Resampled scores of a cell, or the reason why there are none."""
    about = metrics_of(cell, task).get(metric)
    if about is None or about["value"] is None:
        return "it has no score here"
    if about.get("replicates") is not None:
        return np.array(about["replicates"], dtype=float)
    if about["aggregation"] != "mean":
        return about.get("without_interval", "its aggregation was not resampled")
    questions = asked(cell, task)
    return mean_replicates(task, [q["scores"].get(metric) for q in questions], [q.get("cluster") for q in questions])


def pooled(point: Point, task: str, metric: str) -> tuple[float | None, np.ndarray | str]:
    """Score and replicates of a point, means over its seeds; the reason instead of replicates where there are none."""
    values = [metrics_of(cell, task)[metric]["value"] for cell in point.cells]
    made = [replicates(cell, task, metric) for cell in point.cells]
    score = None if None in values else float(np.mean(values))
    reason = next((one for one in made if isinstance(one, str)), None)
    if reason is None and not all(same_questions(point.cells[0], cell, task) for cell in point.cells):
        reason = "its seeds were asked other questions"
    arrays = [one for one in made if not isinstance(one, str)]
    return score, reason if reason is not None else np.mean(arrays, axis=0)


def entries(point: Point, task: str, metric: str) -> np.ndarray | None:
    """(n,) what each question gave, where one cell has a mean of them and no clusters; None otherwise."""
    if len(point.cells) > 1 or metrics_of(point.cells[0], task)[metric]["aggregation"] != "mean":
        return None
    questions = asked(point.cells[0], task)
    found = [q["scores"].get(metric) for q in questions]
    if None in found or any(q.get("cluster") is not None for q in questions):
        return None
    return np.array(found, dtype=float)


def _points(cells: Sequence[Cell]) -> list[Point]:
    groups: dict[str, list[tuple[Recipe, Cell]]] = {}
    for cell in cells:
        recipe = Recipe.from_dict(cell["cell"]["recipe"])
        state = "" if cell["status"] == DONE else cell["key"]  # what failed stands by itself
        groups.setdefault(json.dumps(_without_seeds(recipe).as_dict()) + state, []).append((recipe, cell))
    found = []
    for own in groups.values():
        plain = _without_seeds(own[0][0])
        recipe = own[0][0] if len(own) == 1 and plain.name != "random" else plain
        found.append(Point(recipe.name, recipe.keep, tuple(cell for _, cell in own)))
    return found


def _without_seeds(recipe: Recipe) -> Recipe:
    plain = []
    for method in recipe.methods:
        seed = next((f for f in dataclasses.fields(method) if f.name == "seed"), None)
        changes: dict[str, Any] = {} if seed is None else {"seed": seed.default}
        plain.append(dataclasses.replace(method, **changes))
    return dataclasses.replace(recipe, methods=tuple(plain))


def loaded(cell: Cell) -> tuple[Any, ...]:
    """What tells cells of one table from those of another; see ``labels``."""
    about = cell["cell"]
    settings = json.dumps(about["model_args"], sort_keys=True, default=str)
    return about["model"], about["base"], settings, about["limit"], about["batch_size"], about["task"]


def _unique_end(model: str, models: set[str]) -> str:
    parts = PurePath(model).parts
    for count in range(1, len(parts) + 1):
        end = parts[-count:]
        if all(other == model or PurePath(other).parts[-count:] != end for other in models):
            return "/".join(end).replace("//", "/")
    return model


def _told(cell: Cell) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in sorted(cell["identity"].get("versions", {}).items()) if v)
    return f"{Recipe.from_dict(cell['cell']['recipe'])} of {cell['written'][:16]} ({versions})"


def _measured(result: Mapping[str, Any], quantity: str, task: str) -> float | None:
    leaves = result.get("tasks", {})
    if len([name for name, about in leaves.items() if "group" not in about]) > 1 and "group" not in leaves.get(
        task, {}
    ):
        values = [q[quantity] for q in result["questions"] if q.get("task") == task and q.get(quantity) is not None]
        return float(np.mean(values)) if values else None
    return result["measured"].get(quantity)
