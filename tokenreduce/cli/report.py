"""``tokenreduce report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
        str, typer.Option(help="Any of csv, md, tex, json, parquet, html, separated by commas.")
    ] = "csv,md,tex,json,parquet,html",
    metric: Annotated[
        str | None,
        typer.Option(help="The only metric to show, such as exact_match or exact_match,strict. [default: all]"),
    ] = None,
    control: Annotated[
        str,
        typer.Option(help="What `random` is made equal in: tokens (averaged over layers) or flops (of the decoder)."),
    ] = "tokens",
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare every row with this one: a method at the same budget, or hiprune:0.25, or unreduced."
        ),
    ] = None,
    correction: Annotated[
        str | None, typer.Option(help="Correct the p values of one table for their number: holm or bh.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a table and a page of a sweep: accuracy against tokens, FLOPs and latency, with intervals, and what was kept.

    The page is one file that needs no network. Intervals are over questions, scored by the task's own aggregation; gains over
    `random` at equal cost and ratios to the unreduced model are paired by question. A sweep that is still running can be
    reported, too.

    **Examples**

    - `tokenreduce report sweep_out` , then open sweep_out/report/index.html

    - `tokenreduce report sweep_out --out . --format csv`

    - `tokenreduce report sweep_out --against hiprune --correction holm --format tex`
    """
    from tokenreduce.eval.report import write
    from tokenreduce.eval.sweep import Store

    if not results.is_dir():
        raise ValueError(f"results={str(results)!r} is no folder; give the one that tokenreduce sweep wrote")
    formats = [part.strip() for part in format.split(",") if part.strip()]
    chosen: dict[str, Any] = {"metric": metric, "control": control, "against": against, "correction": correction}
    files = write(results, out or results / "report", formats, **chosen)
    console = Console(soft_wrap=True, highlight=False)
    tell_broken(console, Store(results).find_broken())
    console.print(f"Wrote {', '.join(map(str, files))}", markup=False)
