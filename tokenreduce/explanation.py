"""What a method does and what each of its parameters means, read off the method itself: nothing is written down twice."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

from tokenreduce.downscale import Downscale
from tokenreduce.method import Method
from tokenreduce.registry import AUTO, make
from tokenreduce.tables import Table

STAGES = {
    "pixels": "before the vision tower",
    "encoder": "inside the vision tower",
    "projector": "behind the projector",
    "llm": "between decoder layers",
    "cache": "in the KV cache",
    "decode": "in what new tokens read of the KV cache",
}
KEEP = "a fraction in (0, 1], or a count per image, an int >= 1"
NO_VALUE = "?"  # what no parameter takes: the error then says what is allowed
ELSEWHERE = {AUTO: "where the method does that it becomes", Downscale.name: "on the picture, before the processor"}


@dataclass(frozen=True)
class Explanation:
    """A method in words: ``idea``, ``acts`` (where), ``looks_at``, ``parameters`` with a row each, ``source``, ``departures``.

    Defaults are the paper's where a parameter's row says nothing else.
    """

    name: str
    title: str
    idea: str
    acts: str
    looks_at: str
    media: str
    parameters: Table
    source: str
    departures: str

    @property
    def facts(self) -> dict[str, str]:
        """What is said in one line each, without what there is nothing to say of."""
        names = ("idea", "acts", "looks_at", "media", "source", "departures")
        return {name.replace("_", " "): text for name in names if (text := getattr(self, name))}

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.title}", *(f"{name}: {text}" for name, text in self.facts.items()), ""]
        return "\n".join([*lines, str(self.parameters)])


def explain(method: str | Method | type[Method]) -> Explanation:
    """What ``method`` does and what its parameters mean. Errors: those of ``tr.wrap`` for what is no method.

    >>> print(explain("fastv").parameters[1]["default"])
    2
    """
    cls = type(make(method))
    text = inspect.cleandoc(cls.__doc__ or "")
    return Explanation(
        name=cls.name,
        title=cls.title,
        idea=_flat(re.split(r"\n\n|\nAttributes:", text)[0]),
        acts=", ".join(STAGES[stage] for stage in cls.stages) or ELSEWHERE[cls.name],
        looks_at=cls.looks_at,
        media=", ".join(cls.media),
        parameters=Table(_row(cls, field) for field in dataclasses.fields(cls)),
        source=_section(text, "Source"),
        departures=_section(text, r"Departures[^:\n]*"),
    )


def _row(cls: type[Method], field: dataclasses.Field[Any]) -> dict[str, str]:
    return {
        "parameter": field.name,
        "default": repr(field.default),
        "allowed": _allowed(cls, field),
        "meaning": meaning(cls, field.name),
    }


def meaning(cls: type[Method], parameter: str) -> str:
    """What the docstring of ``cls``, or of the nearest base that speaks of it, says of ``parameter``; empty for nothing."""
    texts = [inspect.cleandoc(base.__dict__.get("__doc__") or "") for base in cls.__mro__ if issubclass(base, Method)]
    for text in texts:
        entry = re.search(rf"^    (?:\w+, )*{parameter}(?:, \w+)*: *(.*(?:\n {{8}}.*)*)", text, re.MULTILINE)
        if entry:
            return _flat(entry[1])
    for text in texts:  # said beside another one
        entry = re.search(rf"[^.;:]*``[^`]*\b{parameter}\b[^`]*``[^.;]*", _flat(text.partition("Attributes:")[2]))
        if entry:
            return entry[0].strip(" ,")
    return ""


def _allowed(cls: type[Method], field: dataclasses.Field[Any]) -> str:
    """What a wrong value is answered with, and so what is really checked; else the annotation."""
    if field.name == "keep":
        return KEEP + (", or auto, such as auto:16-128" if cls.adapts else "") + ", or None" * (field.default is None)
    given: dict[str, Any] = {field.name: NO_VALUE}
    try:
        cls(**given)
    except (TypeError, ValueError) as error:
        said = str(error).partition("allowed: ")[2]
        if str(error).startswith(f"{field.name}=") and said:
            return said
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    return kind.replace("bool", "True | False").replace(" | ", ", ")


def _section(text: str, head: str) -> str:
    found = re.search(rf"^{head}: *(.*(?:\n {{4}}.*)*)", text, re.MULTILINE)
    return _flat(found[1]) if found else ""


def _flat(text: str) -> str:
    return " ".join(text.split())
