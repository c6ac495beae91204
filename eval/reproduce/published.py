"""A table of a paper as data: source, model, setting, metrics by their names in lmms-eval, figures by budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..sweep import Grid

FOLDER = Path(__file__).parent / "papers"
UNREDUCED = "all"
KEYS = {
    "source": "where the figures stand, and who ran them",
    "model": "hub id of the model they were made with",
    "method": "a name of tokenreduce methods",
    "parameters": "a mapping, those of the setting that are not the defaults",
    "columns": "a mapping of the table's headings to {task, metric, scale, note}",
    "figures": "a mapping of budgets, fractions, counts or 'all' (unreduced), to lists of figures in the order of the columns",
    "note": "what else differs between paper and lmms-eval",
}


@dataclass(frozen=True)
class Column:
    """A heading of the table: ``task`` and ``metric`` of lmms-eval; the paper prints ``scale`` times the metric."""

    label: str
    task: str
    metric: str
    scale: float = 100.0
    note: str = ""


@dataclass(frozen=True)
class Published:
    """``figures``: by budget, one per column, None where the paper has none; under None those of the unreduced model."""

    name: str
    source: str
    model: str
    method: str
    parameters: Mapping[str, Any]
    columns: tuple[Column, ...]
    figures: Mapping[float | int | None, tuple[float | None, ...]]
    note: str = ""

    @classmethod
    def read(cls, name: str) -> Published:
        """One of ``tables()``, or a YAML file of the same form.

        Errors: ``ValueError`` for a name that is neither, and for what the file says wrongly, with what is allowed.
        """
        import yaml

        known = FOLDER / f"{name}.yaml"
        file = known if known.is_file() else Path(name)
        if not file.is_file():
            raise ValueError(
                f"no published table {name!r}; allowed: {', '.join(tables())}, or a YAML file of that form"
            )
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
        return cls.of(file.stem, content)

    @classmethod
    def of(cls, name: str, content: Any) -> Published:
        """From a mapping with the keys of ``KEYS``; ``parameters`` and ``note`` may be left out."""
        described = "; ".join(f"{key} ({meaning})" for key, meaning in KEYS.items())
        if not isinstance(content, dict):
            raise ValueError(f"{name} holds no mapping; allowed keys: {described}")
        wrong = [key for key in content if key not in KEYS]
        wrong += [key for key in KEYS if key not in ("parameters", "note") and not content.get(key)]
        if wrong:
            raise ValueError(f"{name}: {wrong[0]!r} is missing, empty or unknown; allowed keys: {described}")
        columns = tuple(_column(name, label, said) for label, said in content["columns"].items())
        figures = {_budget(name, key): _figures(name, key, said, columns) for key, said in content["figures"].items()}
        parameters = dict(content.get("parameters") or {})
        texts = {key: str(content[key]) for key in ("source", "model", "method")}
        note = " ".join(str(content.get("note") or "").split())
        return cls(name=name, columns=columns, figures=figures, parameters=parameters, note=note, **texts)

    @property
    def budgets(self) -> list[float | int]:
        return [keep for keep in self.figures if keep is not None]

    def only(self, tasks: Sequence[str]) -> Published:
        """The same with the columns of these ``tasks``, by heading or by task. Errors: ``ValueError`` for another."""
        named = {name.lower(): column for column in self.columns for name in (column.label, column.task)}
        unknown = [task for task in tasks if task.lower() not in named]
        if unknown:
            raise ValueError(f"task={unknown[0]!r} is no column of {self.name}; allowed: {', '.join(named)}")
        kept = [i for i, column in enumerate(self.columns) if column in [named[task.lower()] for task in tasks]]
        figures = {keep: tuple(row[i] for i in kept) for keep, row in self.figures.items()}
        return Published(**{**vars(self), "columns": tuple(self.columns[i] for i in kept), "figures": figures})

    def grid(self, model: str, **more: Any) -> Grid:
        """The sweep that repeats the table on ``model``, ``random`` at the same budgets beside it; ``more``: see ``Grid``."""
        method = {"method": self.method, **self.parameters}
        tasks = list(dict.fromkeys(column.task for column in self.columns))
        return Grid.of({"model": model, "tasks": tasks, "methods": [method], "keep": self.budgets, **more})


def tables() -> list[str]:
    """Names of the tables that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def _column(name: str, label: str, said: Any) -> Column:
    if not isinstance(said, dict) or not {"task", "metric"} <= set(said) <= {"task", "metric", "scale", "note"}:
        raise ValueError(f"{name}: column {label!r} is {said!r}; allowed: a mapping with task, metric, scale and note")
    return Column(str(label), **said)


def _budget(name: str, key: Any) -> float | int | None:
    if key == UNREDUCED:
        return None
    if isinstance(key, bool) or not isinstance(key, (int, float)) or key <= 0 or (isinstance(key, float) and key > 1):
        raise ValueError(f"{name}: figures of {key!r}; allowed: {UNREDUCED!r}, a fraction in (0, 1], a count of tokens")
    return key


def _figures(name: str, key: Any, said: Any, columns: Sequence[Column]) -> tuple[float | None, ...]:
    numbers = isinstance(said, list) and all(
        x is None or (isinstance(x, (int, float)) and not isinstance(x, bool)) for x in said
    )
    if not numbers or len(said) != len(columns):
        raise ValueError(
            f"{name}: figures of {key!r} are {said!r}; allowed: a list of {len(columns)} numbers, null for none"
        )
    return tuple(said)
