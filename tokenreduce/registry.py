"""Every method, found by its name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from typing import Any

import tokenreduce.methods  # noqa: F401  (defining a method registers it)
from tokenreduce import own_methods
from tokenreduce.auto import Auto
from tokenreduce.downscale import Downscale
from tokenreduce.method import Method, registered

AUTO = Auto.name  # stands for a method of a table, and is none to compare
#: where a method of one's own stands, with a budget behind it or without: ./mine.py:Mine, package.mine:Mine:0.25
_PLACE = re.compile(r"(?P<source>[^:]+):(?P<cls>(?!auto\b)[A-Za-z_]\w*)(?::(?P<keep>.*))?")


def registry() -> dict[str, type[Method]]:
    """All known methods by name, baselines last; those that installed packages bring, too."""
    own_methods.load_installed()
    return registered()


def catalogue() -> dict[str, type[Method]]:
    """``registry()``, and the baseline that acts on pictures and cannot be put on a model."""
    return {**registry(), Downscale.name: Downscale}


def shortens(name: str) -> bool:
    """Whether tokens leave by the method ``name``, so that it can fill a budget."""
    return getattr(catalogue()[name], "shortens", True)


def named(text: str) -> tuple[str, str]:
    """The name of a method and the text of the budget behind it, empty for none.

    ``text`` is ``fastv``, ``fastv:0.25``, or a place of one's own, ``./mine.py:Mine`` and ``package.mine:Mine:0.25``, which is
    imported.

    Errors: ``ValueError`` where there is no such place, or its class cannot be found by a name.
    """
    text = text.strip()
    place = _PLACE.fullmatch(text)
    name, _, keep = text.partition(":")
    if place is None or name.lower() in catalogue():
        return name.lower(), keep
    cls = own_methods.found(f"{place['source']}:{place['cls']}")
    _check_class(cls)
    if catalogue().get(cls.name) is not cls:
        raise ValueError(
            f"method={text!r} is not registered under its name {cls.name!r}; allowed: a class without register=False, whose "
            "name no other method has"
        )
    return cls.name, place["keep"] or ""


def make(method: str | Method | type[Method], **parameters: Any) -> Method:
    """An instance from a name, a class or an instance, with ``parameters`` set; unknown words are errors that teach.

    A method of one's own may also be named by its place, ``./mine.py:Mine`` or ``package.mine:Mine``.
    """
    if isinstance(method, str) and _PLACE.fullmatch(method) and method.partition(":")[0].lower() not in catalogue():
        method = own_methods.found(method)
    if isinstance(method, str) and method.lower() == AUTO:
        method = Auto
    if isinstance(method, str):
        known = catalogue()
        if method.lower() not in known:
            near = difflib.get_close_matches(method.lower(), known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"method={method!r} is unknown; known: {', '.join(known)}; auto, the best known for a model; or one of your own "
                f"by its place, as in './mine.py:Mine'.{hint}"
            )
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
