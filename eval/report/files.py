"""The files of a report."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..results import claim, write_json
from ..sweep.store import Store
from .columns import markdown
from .page import page
from .table import Row, rows

FORMATS = {"csv": "table.csv", "md": "table.md", "parquet": "table.parquet", "html": "index.html"}
NEEDS = {"parquet": "pyarrow", "html": "plotly"}


def write(results: Path, out: Path, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write the report of the sweep in ``results`` into ``out``; returns the files.

    Errors: ``ValueError`` for a folder without cells, an unknown format, a missing package (with its pip command), or files in
    ``out`` that no earlier report wrote.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"format={unknown[0] if unknown else ''!r}; allowed: {', '.join(FORMATS)}")
    cells = Store(results).everything()
    if not cells:
        raise ValueError(
            f"results={str(results)!r} holds no cells of a sweep; give the folder that tokenreduce sweep wrote"
        )
    for name in formats:
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            raise ValueError(
                f"{NEEDS[name]} is not installed, which {name} needs; run: pip install 'tokenreduce[report]', or choose "
                "--format csv,md"
            )
    files = [FORMATS[name] for name in formats]
    claim(out, files)
    found = rows(cells)
    for name in formats:
        make: Callable[..., bytes] = {"csv": _csv, "md": _markdown, "parquet": _parquet, "html": _html}[name]
        (out / FORMATS[name]).write_bytes(make(found, cells))
    write_json(out / "results.json", {"files": files})
    return [out / name for name in files]


def _csv(found: Sequence[Row], cells: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in found)
    return text.getvalue().encode()


def _parquet(found: Sequence[Row], cells: Any) -> bytes:
    import pyarrow
    from pyarrow import parquet

    text = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([dataclasses.asdict(row) for row in found]), text)
    return text.getvalue()


def _html(found: Sequence[Row], cells: Sequence[dict[str, Any]]) -> bytes:
    return page(found, cells).encode()


def _markdown(found: Sequence[Row], cells: Any) -> bytes:
    return markdown(found).encode()
