"""Which family, of models or of encoders alone, a model belongs to."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any

from tokenreduce.adapters.encoders import refused as encoders
from tokenreduce.adapters.families import refused as models
from tokenreduce.adapters.families.refused import Refusal

ROOMS = ("tokenreduce.adapters.families", "tokenreduce.adapters.encoders")
GROUP = "tokenreduce.families"  # of entry points, by which packages bring families
LIKE = "like:"
BY_TYPE = {**models.BY_TYPE, **encoders.BY_TYPE}

_FAMILIES: dict[str, type[Any]] = {}


def register(model_types: tuple[str, ...], family: type[Any]) -> None:
    """Let ``family`` serve models of ``model_types``."""
    for model_type in model_types:
        _FAMILIES[model_type] = family


def families() -> dict[str, type[Any]]:
    """Family class, of models or of encoders alone, by model type; those of installed packages among them.

    Errors: ``ValueError`` when a package brings a family that cannot be imported, or one for a type that is served here.
    """
    for room in ROOMS:
        for module in iter_modules(import_module(room).__path__):
            import_module(f"{room}.{module.name}")
    _of_packages()
    return dict(sorted(_FAMILIES.items()))


@cache
def _of_packages() -> None:
    own = dict(_FAMILIES)
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else "a package"
        where = f"the family {point.name!r} of {package} ({point.value})"
        try:
            point.load()
        except Exception as error:
            raise ValueError(
                f"{where} cannot be imported ({type(error).__name__}: {error}); mend or uninstall {package}"
            ) from error
        taken = [model_type for model_type, cls in own.items() if _FAMILIES[model_type] is not cls]
        if taken:
            _FAMILIES.update(own)
            raise ValueError(
                f"{where} names model_types that are served here: {', '.join(taken)}; allowed: types of its own. "
                f"Rename them in its configuration, or uninstall {package}"
            )


def refused() -> dict[str, Refusal]:
    """Why types that are known and not served are refused, by model type."""
    served = families()
    return {model_type: BY_TYPE[model_type] for model_type in sorted(BY_TYPE) if model_type not in served}


def family_of(model: Any) -> Any:
    """The family of ``model``, or an error that lists what is supported."""
    known = families()
    for cls in dict.fromkeys(known.values()):
        if cls.serves(model):
            return cls(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise TypeError(
            f"model is a {type(model).__name__}, neither a vision-language model of transformers nor a supported vision "
            f"encoder; supported model types: {', '.join(known)}"
        )
    raise ValueError(f"model of type {model_type!r} ({type(model).__name__}) {why_not(model_type)}")


def why_not(model_type: str) -> str:
    """What to say of models of ``model_type``, which no family serves: a clause about them, and what to do."""
    if model_type in BY_TYPE:
        refusal = BY_TYPE[model_type]
        return f"is not supported: it {refusal.reason}. Instead, {refusal.instead}."
    known = families()
    near = difflib.get_close_matches(str(model_type), known, n=1)
    hint = f" Closest: {near[0]!r}." if near else ""
    return (
        f"is not supported; supported model types: {', '.join(known)}.{hint} Where it is built like one of these, "
        f"tr.wrap(model, ..., family='{LIKE}{near[0] if near else 'llava'}') takes the facts of that one once they are found "
        "in the model; `tokenreduce doctor` tells whether that one is right here. A file of its own states others: "
        "docs/adding_a_family.md"
    )
