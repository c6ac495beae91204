"""One point of a sweep, and the key under which its result is kept."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from .hashes import combined, file_hash, source_hash
from .tasks import task_identity

PACKAGES = (
    "tokenreduce", "lmms-eval", "torch", "torchvision", "transformers", "tokenizers", "datasets", "pillow", "numpy",
)  # fmt: skip


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
        # a method may be defined outside of the toolkit
        sources = {m.name: file_hash(Path(inspect.getfile(type(m)))) for m in self.recipe.methods}
        return {
            **{name: value for name, value in self.as_dict().items() if name not in ("model", "include")},
            "model_files": model_hash(self.model),
            "task_identity": task_identity(self.task, self.include),
            "method_files": sources,
            "sources": source_hash(),
            "versions": {name: installed(name) for name in PACKAGES},
        }

    @property
    def key(self) -> str:
        """20 hexadecimal digits; the name of the result's file."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:20]


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def model_folder(model: str) -> Path:
    """Where the files of a model are; a hub id is fetched into the hub's cache if it is not there.

    Errors: ``ValueError`` for what is neither.
    """
    if model == "demo":
        from ..demo import WEIGHTS

        return WEIGHTS
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:
        raise ValueError(
            f"model={model!r} is no folder here and no reachable hub model ({str(error).splitlines()[0][:200]}); allowed: a "
            "folder with config.json, weights and processor files, a hub id such as llava-hf/llava-1.5-7b-hf, or demo"
        ) from error


@cache
def model_hash(model: str) -> str:
    """One hash for weights, configuration, processor and tokenizer together."""
    place = model_folder(model)
    if not (place / "config.json").is_file():
        raise ValueError(f"model={model!r} holds no config.json; give a folder written by save_pretrained")
    return combined({f.name: file_hash(f) for f in sorted(place.iterdir()) if f.is_file() and f.suffix != ".md"})
