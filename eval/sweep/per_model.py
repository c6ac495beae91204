"""Parameters of a method that some models of a grid have: ``method: {fastervlm: {qwen2_5_vl: {score: global_mean}}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .identity import model_folder

FORM = "{method: {fastervlm: {qwen2_5_vl: {score: global_mean}}}}, parameters under the name or the type of a model"


def parted(method: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    """The name of an entry's method, and the parameters it gives to single models.

    Errors: ``ValueError`` for what is neither a name nor of the form above.
    """
    if isinstance(method, str):
        return method, {}
    if isinstance(method, Mapping) and len(method) == 1:
        ((name, given),) = method.items()
        if isinstance(name, str) and isinstance(given, Mapping) and all(isinstance(p, Mapping) for p in given.values()):
            return name, {str(model): dict(parameters) for model, parameters in given.items()}
    raise ValueError(f"methods: method={method!r}; allowed: a name, or {FORM}")


def check(methods: Sequence[Any], models: Sequence[str]) -> None:
    """Raise ``ValueError`` where an entry names a model that is none of ``models``."""
    for entry in methods:
        if isinstance(entry, Mapping) and "method" in entry:
            name, given = parted(entry["method"])
            unknown = [key for key in given if not any(key in _words(model) for model in models)]
            if unknown:
                known = "; ".join(f"{model} ({', '.join(dict.fromkeys(_words(model)))})" for model in models)
                raise ValueError(
                    f"methods: {name} has parameters for {unknown[0]!r}, which is no model of this grid; allowed: {known}"
                )


def parameters(given: Mapping[str, Mapping[str, Any]], model: str) -> dict[str, Any]:
    """What ``given`` holds for ``model``: by its type, and over that by its name."""
    found: dict[str, Any] = {}
    for word in dict.fromkeys(_words(model)) if given else ():
        found |= given.get(word, {})
    return found


@cache
def _words(model: str) -> tuple[str, ...]:
    """By what a grid may name ``model``: its type, the last part of its name, its name."""
    try:
        kind = json.loads((model_folder(model) / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, KeyError) as error:
        raise ValueError(f"model={model!r} has no config.json that names its model_type ({error})") from None
    return str(kind), Path(model).name, model
