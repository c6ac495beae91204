"""What answers depend on beside the questions: files of the model, sources of methods and toolkit, versions."""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from .hashes import combined, file_hash, source_hash

PACKAGES = (
    "tokenreduce", "lmms-eval", "torch", "torchvision", "transformers", "tokenizers", "datasets", "pillow", "numpy",
    "av", "decord",
)  # fmt: skip


def code_identity(recipe: Recipe) -> dict[str, Any]:
    """Hashes of the files of ``recipe``'s methods, which may be defined outside of the toolkit, and of its own; versions."""
    return {
        "method_files": {m.name: file_hash(Path(inspect.getfile(type(m)))) for m in recipe.methods},
        "sources": source_hash(),
        "versions": {name: installed(name) for name in PACKAGES},
    }


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
