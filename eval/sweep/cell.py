"""One point of a sweep, and the key under which its result is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from .identity import code_identity, model_hash
from .tasks import task_identity


@dataclass(frozen=True)
class Cell:
    """A model, what is put on it, and a task.

    ``model``: ``demo``, a folder or a hub id; ``base``: lmms-eval's model that runs it, None to find it by its type;
    ``model_args``: further arguments of that model; ``include``: folders with tasks; ``limit``: questions, None for all;
    ``seed``: of the draws of sampled decoding, None for lmms-eval's own.
    """

    model: str
    task: str
    recipe: Recipe = field(default_factory=Recipe)
    base: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int = 1
    seed: int | None = None

    def __str__(self) -> str:
        drawn = "" if self.seed is None else f" seed={self.seed}"
        return f"{Path(self.model).name} {self.task} {self.recipe}{drawn}"

    @property
    def loads(self) -> tuple[Any, ...]:
        """What has to be loaded for it: cells that share this run on one loaded model."""
        return self.model, self.base, tuple(sorted(self.model_args.items())), self.batch_size

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "recipe": self.recipe.as_dict(), "include": list(self.include)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        return cls(**{**data, "recipe": Recipe.from_dict(data["recipe"]), "include": tuple(data["include"])})

    def identity(self) -> dict[str, Any]:
        """Everything that determines its result: itself, files of the model, the task with its data, sources, versions."""
        own = {name: value for name, value in self.as_dict().items() if name not in ("model", "include")}
        own["recipe"].pop("places", None)  # what a method is, its file says, wherever it lies
        for value in (value for step in own["recipe"]["methods"] for value in step.values() if isinstance(value, dict)):
            if "sha256" in value:  # what its weights are, their hash says
                value.pop("path")
        return {
            **own,
            "model_files": model_hash(self.model),
            "task_identity": task_identity(self.task, self.include),
            **code_identity(self.recipe),
        }

    @property
    def key(self) -> str:
        """20 hexadecimal digits; the name of the result's file."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:20]
