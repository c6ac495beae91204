"""``tokenreduce report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, teaching
from tokenreduce.cli.sweep import tell_broken


@app.command()
@teaching
def report(
    results: Annotated[Path, typer.Argument(help="Folder that `tokenreduce sweep` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report. [default: report, in RESULTS]")] = None,
    format: Annotated[
        str, typer.Option(help="Any of csv, md, parquet, html, separated by commas.")
    ] = "csv,md,parquet,html",
    debug: Debug = False,
) -> None:
    """Make a table and a page of a sweep: accuracy against tokens, FLOPs and latency, with intervals, and what was kept.

    The page is one file that needs no network. Intervals are over questions; differences to `random` and ratios to the
    unreduced model are paired by question. A sweep that is still running can be reported, too.

    **Examples**

    - `tokenreduce report sweep_out` , then open sweep_out/report/index.html

    - `tokenreduce report sweep_out --out . --format csv`
    """
    from tokenreduce.eval.report import write
    from tokenreduce.eval.sweep import Store

    if not results.is_dir():
        raise ValueError(f"results={str(results)!r} is no folder; give the one that tokenreduce sweep wrote")
    files = write(results, out or results / "report", [part.strip() for part in format.split(",") if part.strip()])
    console = Console(soft_wrap=True, highlight=False)
    tell_broken(console, Store(results).find_broken())
    console.print(f"Wrote {', '.join(map(str, files))}", markup=False)
