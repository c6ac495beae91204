"""Tables as people read them, and the table of model families."""

from __future__ import annotations

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

    def markdown(self) -> str:
        """The table as Markdown, to be pasted; its columns stand in line."""
        if not self:
            return "(empty)"
        cells = [[*self[0]], *([str(value).replace("|", "\\|") for value in row.values()] for row in self)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [" | ".join(value.ljust(width) for value, width in zip(row, widths)) for row in cells]
        rule = " | ".join("-" * max(3, width) for width in widths)
        return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in (self[0] if self else ()))
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{value}</td>" for value in row.values()) + "</tr>"
            for row in self
        )
        return f"<table><tr>{head}</tr>{body}</table>"


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


def refused() -> Table:
    """One row per ``config.model_type`` of transformers that is known and not served: the reason, and what to do instead."""
    from tokenreduce.adapters.registry import refused as known

    return Table(
        {"model_type": name, "reason": f"it {refusal.reason}", "instead": refusal.instead}
        for name, refusal in known().items()
    )
