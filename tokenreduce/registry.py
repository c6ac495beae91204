"""Every method, found by its name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any

import tokenreduce.methods  # noqa: F401  (defining a method registers it)
from tokenreduce.downscale import Downscale
from tokenreduce.method import Method, registered


def registry() -> dict[str, type[Method]]:
    """All known methods by name, baselines last."""
    return registered()


def catalogue() -> dict[str, type[Method]]:
    """``registry()``, and the baseline that acts on pictures and cannot be put on a model."""
    return {**registry(), Downscale.name: Downscale}


def make(method: str | Method | type[Method], **parameters: Any) -> Method:
    """An instance from a name, a class or an instance, with ``parameters`` set; unknown words are errors that teach."""
    if isinstance(method, str):
        known = catalogue()
        if method.lower() not in known:
            near = difflib.get_close_matches(method.lower(), known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"method={method!r} is unknown; known: {', '.join(known)}.{hint}")
        method = known[method.lower()]
    cls = method if isinstance(method, type) else type(method)
    if not issubclass(cls, Method):
        raise TypeError(
            f"method={method!r} is a {cls.__name__}; allowed: a name from tr.methods(), or an instance such as tr.FastV(keep=0.5)"
        )
    _check_class(cls)
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in parameters:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{cls.name} has no parameter {key!r}; it has: {', '.join(fields)}.{hint}")
    return cls(**parameters) if isinstance(method, type) else dataclasses.replace(method, **parameters)


def _check_class(cls: type[Method]) -> None:
    """Raise where a class of one's own cannot work as it is written."""
    missing = [word for word in ("name", "title", "stages") if not hasattr(cls, word)]
    if missing:
        raise TypeError(
            f"{cls.__name__} has no {' and no '.join(missing)}; set class attributes, such as name = 'mine'"
        )
    own = [word for word, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)]
    known = {f.name for f in dataclasses.fields(cls)}
    if "__dataclass_fields__" not in cls.__dict__ and set(own) - known:
        raise TypeError(
            f"{cls.__name__} declares {', '.join(own)}, but they are no parameters: write "
            "@dataclass(frozen=True, kw_only=True) above the class"
        )
