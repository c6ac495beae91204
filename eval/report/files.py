"""The files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..results import claim, write_json
from ..sweep.store import Store
from .comparison import compared
from .formats import csv_table, json_table, latex, markdown, parquet_table
from .page import page
from .points import tables
from .rows import rows

FORMATS = {
    "csv": "table.csv",
    "md": "table.md",
    "tex": "table.tex",
    "json": "table.json",
    "parquet": "table.parquet",
    "html": "index.html",
}
NEEDS = {"parquet": "pyarrow", "html": "plotly"}


def write(
    results: Path,
    out: Path,
    formats: Sequence[str] = tuple(FORMATS),
    *,
    metric: str | None = None,
    control: str = "tokens",
    against: str | None = None,
    correction: str | None = None,
) -> list[Path]:
    """Write the report of the sweep in ``results`` into ``out``; returns the files.

    Args:
        metric, control: as in ``rows``; against, correction: as in ``compared``.

    Errors: ``ValueError`` for a folder without cells, an unknown format, metric, control or row, a missing package (with its pip
    command), or files in ``out`` that no earlier report wrote.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"format={unknown[0] if unknown else ''!r}; allowed: {', '.join(FORMATS)}")
    cells = Store(results).everything()
    if not cells:
        raise ValueError(
            f"results={str(results)!r} holds no cells of a sweep; give the folder that tokenreduce sweep wrote"
        )
    needed = {NEEDS[name]: f"--format {name}" for name in formats if name in NEEDS} | (
        {"scipy": "--against"} if against else {}
    )
    for package, what in needed.items():
        if find_spec(package) is None:
            raise ValueError(
                f"{package} is not installed, which {what} needs; run: pip install 'tokenreduce[report]', or choose "
                "--format csv,md"
            )
    if correction is not None and against is None:
        raise ValueError(
            "--correction has no comparisons to correct; name a row with --against, for example --against random"
        )
    found = rows(cells, metric=metric, control=control)
    if against is not None:
        found = compared(cells, found, against, correction)
    left_out = [f"{table.model}, {table.task}: {name}" for table in tables(cells) for name in table.left_out]
    files = [FORMATS[name] for name in formats]
    claim(out, files)
    make = {
        "csv": lambda: csv_table(found).encode(),
        "md": lambda: (markdown(found, control) + _left_out(left_out)).encode(),
        "tex": lambda: latex(found, control).encode(),
        "json": lambda: json_table(found, control).encode(),
        "parquet": lambda: parquet_table(found),
        "html": lambda: page(found, cells, control, left_out).encode(),
    }
    for name in formats:
        (out / FORMATS[name]).write_bytes(make[name]())
    write_json(out / "results.json", {"files": files})
    return [out / name for name in files]


def _left_out(names: Sequence[str]) -> str:
    if not names:
        return ""
    return "\nOf an earlier state of weights, questions or code, and left out:\n\n" + "".join(
        f"* {name}\n" for name in names
    )
