"""The table of a report as CSV, Markdown, LaTeX, JSON and Parquet."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from .columns import LEGEND, Column, columns, notes, title
from .rows import Row


def csv_table(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return text.getvalue()


def json_table(rows: Sequence[Row], control: str) -> str:
    """Rows with all their fields, and what the columns of the other tables mean."""
    legend = {"": LEGEND, **{column.head: column.legend for column in columns(rows, control)}}
    content = {"legend": legend, "rows": [dataclasses.asdict(row) for row in rows]}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def parquet_table(rows: Sequence[Row]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    numeric = {f.name for f in dataclasses.fields(Row) if "float" in str(f.type)}
    fields = [(f.name, _kind(f, numeric, pyarrow)) for f in dataclasses.fields(Row)]
    text = io.BytesIO()
    table = pyarrow.Table.from_pylist([dataclasses.asdict(row) for row in rows], pyarrow.schema(fields))
    parquet.write_table(table, text)
    return text.getvalue()


def _kind(field: Any, numeric: set[str], pyarrow: Any) -> Any:
    if field.name in numeric:
        return pyarrow.float64()
    return {"bool": pyarrow.bool_(), "int": pyarrow.int64()}.get(str(field.type).split(" ")[0], pyarrow.string())


def markdown(rows: Sequence[Row], control: str = "tokens") -> str:
    """A table per model, task and metric, and below them what they say."""
    lines: list[str] = []
    for own, used in _tables(rows, control):
        heads = [column.head for column in used]
        lines += [f"### {title(own[0])}", "", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        lines += [f"| {' | '.join(_escaped(c.text(row)) for c in used)} |" for row in own if row.error is None]
        lines += ["", *(f"* {_escaped(note)}" for note in notes(own)), ""]
    meant = [f"* **{column.head}**: {column.legend}." for column in columns(rows, control)]
    return "\n".join([*lines, LEGEND, "", *meant, ""])


def latex(rows: Sequence[Row], control: str = "tokens") -> str:
    """The same tables for LaTeX, with the rules of ``booktabs``."""
    lines = ["% \\usepackage{booktabs}"]
    for own, used in _tables(rows, control):
        if all(row.error is not None for row in own):
            continue
        lines += ["\\begin{table}", "\\centering", f"\\caption{{{tex(title(own[0]))}. {tex(LEGEND)}}}"]
        lines += [f"\\begin{{tabular}}{{ll{'r' * (len(used) - 2)}}}", "\\toprule"]
        lines += [" & ".join(tex(column.head) for column in used) + r" \\", "\\midrule"]
        lines += [" & ".join(tex(c.text(row)) for c in used) + r" \\" for row in own if row.error is None]
        lines += ["\\bottomrule", "\\end{tabular}", *(f"% {note}" for note in notes(own)), "\\end{table}", ""]
    return "\n".join(lines)


def tex(text: str) -> str:
    """Text with what LaTeX would take for commands written out."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "<": "$<$",
    }
    return re.sub(r"[\\~^±<&%$#_{}]", lambda found: special.get(found[0], "\\" + found[0]), text)


def _tables(rows: Sequence[Row], control: str) -> Iterator[tuple[list[Row], list[Column]]]:
    for place in dict.fromkeys(row.place for row in rows):
        own = [row for row in rows if row.place == place]
        yield own, columns(own, control)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
