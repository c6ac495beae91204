"""Which family, of models or of encoders alone, a model belongs to."""

from __future__ import annotations

import difflib
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

ROOMS = ("tokenreduce.adapters.families", "tokenreduce.adapters.encoders")

_FAMILIES: dict[str, type[Any]] = {}


def register(model_types: tuple[str, ...], family: type[Any]) -> None:
    """Let ``family`` serve models of ``model_types``."""
    for model_type in model_types:
        _FAMILIES[model_type] = family


def families() -> dict[str, type[Any]]:
    """Family class, of models or of encoders alone, by model type."""
    for room in ROOMS:
        for module in iter_modules(import_module(room).__path__):
            import_module(f"{room}.{module.name}")
    return dict(sorted(_FAMILIES.items()))


def family_of(model: Any) -> Any:
    """The family of ``model``, or an error that lists what is supported."""
    known = families()
    for cls in dict.fromkeys(known.values()):
        if cls.serves(model):
            return cls(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    near = difflib.get_close_matches(str(model_type), known, n=1)
    hint = f" Closest: {near[0]!r}." if near else ""
    if model_type is None:
        raise TypeError(
            f"model is a {type(model).__name__}, neither a vision-language model of transformers nor a supported vision "
            f"encoder; supported model types: {', '.join(known)}"
        )
    raise ValueError(
        f"model of type {model_type!r} ({type(model).__name__}) is not supported; supported model types: "
        f"{', '.join(known)}.{hint} Adding one is a single file, see docs/adding_a_family.md"
    )
