"""A grid of cells, from a YAML file or from flags; what cannot be meant is refused before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenreduce import own_methods
from tokenreduce.registry import AUTO, named, shortens

from ..harness import TASKS
from ..recipe import Recipe, budget
from . import per_model
from .cell import Cell
from .per_model import FORM
from .tasks import has_drawn_answers

KEYS = {
    "model": "demo, a folder or a hub id; or a list of them",
    "base": "lmms-eval's model that runs it, such as llava_hf; by default from the model's type",
    "model_args": "a mapping, further arguments of that model, such as {dtype: bfloat16}",
    "tasks": "a list of tasks of lmms-eval",
    "include_path": "a folder, or a list of them, with tasks of your own",
    "methods": "a list of names, of compositions such as fastervlm:0.5+fastv:64, of mappings {method: fastv, layer: [2, 3]}, "
    f"of mappings for single models {FORM}",
    "import": "a module or file, or a list of them, that defines methods of your own",
    "keep": "a list of budgets, fractions or counts",
    "limit": "questions per task, for a first look",
    "batch_size": "prompts per batch",
    "seeds": "a list of seeds, for sampled decoding and for methods with chance",
}
KEEP = (0.5, 0.25, 0.11)


@dataclass(frozen=True)
class Grid:
    """``cells`` in the order they run: per model and task the unreduced model, ``random`` at every budget, the methods.

    ``by_default``: the methods are all that there are, because none were named.
    """

    cells: tuple[Cell, ...]
    by_default: bool = False

    @classmethod
    def read(cls, file: Path, **changes: Any) -> Grid:
        """From a YAML file; ``changes`` replace what it says. Errors: ``ValueError`` naming the line or the key."""
        import yaml

        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"grid={str(file)!r} cannot be read ({error}); give a YAML file") from None
        except yaml.YAMLError as error:
            raise ValueError(f"grid={str(file)!r} is no YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ValueError(f"grid={str(file)!r} holds no mapping; allowed keys: {_described()}")
        return cls.of(content | changes)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Grid:
        """From a mapping with the keys of ``KEYS``; ``model`` and ``tasks`` must be there, ``methods`` are all by default."""
        unknown = sorted(set(content) - set(KEYS))
        if unknown:
            raise ValueError(f"grid has no key {unknown[0]!r}; allowed keys: {_described()}")
        for key in ("model", "tasks"):
            if not content.get(key):
                raise ValueError(f"grid says no {key}; {key}: {KEYS[key]}")
        limit, batch_size = content.get("limit"), content.get("batch_size", 1)
        for key, number in (("limit", limit), ("batch_size", batch_size)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{key}={number!r}; allowed: an int >= 1")
        model_args = content.get("model_args") or {}
        if not isinstance(model_args, dict):
            raise ValueError(f"model_args={model_args!r}; allowed: {KEYS['model_args']}")
        include = (*(str(place) for place in _several(content.get("include_path"))), str(TASKS))
        seeds = _seeds(content.get("seeds"))
        own_methods.load(_several(content.get("import")))
        shared: dict[str, Any] = {
            "base": content.get("base"),
            "model_args": model_args,
            "include": include,
            "limit": limit,
            "batch_size": batch_size,
        }
        models, tasks = (list(map(str, _several(content[key]))) for key in ("model", "tasks"))
        per_model.check(_several(content.get("methods")), models)
        recipes = {model: tuple(_recipes(content, seeds, model)) for model in models}
        drawn = {task: bool(seeds) and has_drawn_answers(task, include) for task in tasks}
        found = (
            (model, task, recipe, seed if drawn[task] else None)
            for model, task in itertools.product(models, tasks)
            for recipe, seed in recipes[model]
        )
        cells = (Cell(model, task, recipe, seed=seed, **shared) for model, task, recipe, seed in dict.fromkeys(found))
        return cls(tuple(cells), by_default=not _several(content.get("methods")))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def include(self) -> tuple[str, ...]:
        return self.cells[0].include


def _described() -> str:
    return "; ".join(f"{key} ({meaning})" for key, meaning in KEYS.items())


def _several(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _budgets(values: Any) -> list[Any]:
    from tokenreduce.budgets import Budget

    return [budget(v, "keep") if isinstance(v, str) else Budget(v).keep for v in _several(values)]


def _seeds(values: Any) -> list[int]:
    wrong = [value for value in _several(values) if isinstance(value, bool) or not isinstance(value, int) or value < 0]
    if wrong:
        raise ValueError(f"seeds={wrong[0]!r}; allowed: ints >= 0, such as 0,1,2")
    return list(dict.fromkeys(_several(values)))


def _recipes(content: Mapping[str, Any], seeds: Sequence[int], model: str) -> Iterator[tuple[Recipe, int | None]]:
    """Recipes of ``model`` with the seed of what is drawn beside them; a method with chance has it, too, or its own."""
    import tokenreduce as tr

    shared = _budgets(content.get("keep")) or list(KEEP)
    named = _several(content.get("methods")) or [
        row["name"] for row in tr.methods() if "image" in row["media"] and shortens(row["name"])
    ]
    chosen = [recipe for entry in named for recipe in _spanned(entry, shared, model)]
    budgets = shared + [m.keep for recipe, _ in chosen if len(recipe.methods) == 1 for m in recipe.methods]
    control = [(Recipe.of("random", keep), False) for keep in dict.fromkeys(budgets) if not isinstance(keep, str)]
    for recipe, own_seed in dict.fromkeys(((Recipe(), True), *control, *chosen)):
        for seed in seeds or (None,):
            yield recipe if own_seed or seed is None else recipe.with_seed(seed), seed


def _spanned(entry: Any, shared: Sequence[Any], model: str) -> Iterator[tuple[Recipe, bool]]:
    """The recipes of one entry for ``model``: every combination of its lists, at every budget; and whether it names seeds."""
    if isinstance(entry, str):
        entry = {"method": entry}
    if not isinstance(entry, dict) or "method" not in entry:
        raise ValueError(f"methods: {entry!r}; allowed: a name, a composition, or a mapping with the key method")
    own = dict(entry)
    names, given = per_model.parted(own.pop("method"))
    own |= per_model.parameters(given, model)
    as_video = own.pop("images_as_video", False)
    if AUTO in (named(name)[0] for name in names.split("+")):
        raise ValueError("methods: 'auto' stands for what a sweep finds; allowed: methods by their own names")
    budgets = _budgets(own.pop("keep", None)) or list(shared)
    if all(named(name)[1] for name in names.split("+")):
        budgets = [None]
    for values in itertools.product(*map(_several, own.values())):
        for keep in budgets:
            parameters = dict(zip(own, values))
            yield Recipe.of(names, keep, parameters, as_video), any(key.split(".")[-1] == "seed" for key in parameters)
