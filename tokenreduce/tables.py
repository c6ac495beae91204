"""What there is: tables of methods and of model families."""

from __future__ import annotations

import dataclasses
from typing import Any


class Table(list[dict[str, Any]]):
    """Rows as dictionaries that print as a table."""

    def __str__(self) -> str:
        if not self:
            return "(empty)"
        names = list(self[0])
        widths = {name: max(len(name), *(len(str(row[name])) for row in self)) for name in names}
        lines = ["  ".join(str(row[name]).ljust(widths[name]) for name in names) for row in self]
        return "\n".join(["  ".join(name.ljust(widths[name]) for name in names), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in (self[0] if self else ()))
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{value}</td>" for value in row.values()) + "</tr>"
            for row in self
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def methods() -> Table:
    """One row per method: name, title, stages, what it looks at, parameters with defaults, paper."""
    from tokenreduce.method import registry

    return Table(
        {
            "name": name,
            "title": cls.title,
            "stages": " + ".join(cls.stages),
            "media": ", ".join(cls.media),
            "looks_at": cls.looks_at,
            "parameters": ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(cls)),
            "paper": cls.paper or "baseline",
        }
        for name, cls in registry().items()
    )


def families() -> Table:
    """One row per supported ``config.model_type``: adapter and remarks."""
    from tokenreduce.adapters.registry import families as known

    return Table(
        {
            "model_type": name,
            "kind": "encoder" if "encoder" in cls.__module__ else "VLM",
            "adapter": cls.__module__.rpartition(".")[2] + ".py",
            "remarks": cls.remarks,
        }
        for name, cls in known().items()
    )
