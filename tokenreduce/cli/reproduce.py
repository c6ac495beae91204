"""``tokenreduce reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tokenreduce.cli.app import FAILED, Debug, app, print_table, teaching
from tokenreduce.cli.arguments import mapping
from tokenreduce.cli.options import Imports
from tokenreduce.cli.sweep import evaluate


@app.command()
@teaching
def reproduce(
    table: Annotated[
        str, typer.Argument(help="A published table, such as hiprune, or a YAML file with one; `list` names them.")
    ],
    model: Annotated[
        str | None, typer.Option(help="`demo`, a folder or a hub id. [default: the published one]")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Columns of the table, by heading or task, separated by commas. [default: all]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per task. [default: all]")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep and the page. [default: reproduce_TABLE]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 1,
    base: Annotated[
        str | None, typer.Option(help="lmms-eval's model that runs it. [default: by the model's type]")
    ] = None,
    model_args: Annotated[
        str | None, typer.Option(help="Further arguments of that model, such as dtype=bfloat16.")
    ] = None,
    imports: Imports = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with tasks of your own.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at a time, one GPU each. [default: 1]")] = None,
    debug: Debug = False,
) -> None:
    """Repeat a table of a paper through lmms-eval: published beside ours, with interval and difference.

    Runs the sweep that the table asks for (the unreduced model and `random` beside it; run again to go on where it stopped) and
    writes page.md. Scores differ by prompts and decoding between papers and lmms-eval: each line also has its share of the
    unreduced model's own score, which is what a method is to be judged by.

    **Examples**

    - `tokenreduce reproduce list`

    - `tokenreduce reproduce hiprune --tasks pope,gqa --limit 500`

    - `tokenreduce reproduce my_table.yaml --model ./my-llava --out again`
    """
    from tokenreduce.eval.harness import require
    from tokenreduce.eval.reproduce import Published, tables
    from tokenreduce.eval.sweep.checks import check

    if table == "list":
        print_table([_about(Published.read(name)) for name in tables()], "published tables")
        return
    require()
    asked = Published.read(table)
    if tasks is not None:
        asked = asked.only([part.strip() for part in tasks.split(",") if part.strip()])
    given: dict[str, Any] = {
        "limit": limit,
        "batch_size": batch_size,
        "base": base,
        "model_args": None if model_args is None else mapping(model_args, "--model-args"),
        "include_path": [str(path) for path in include_path or []],
        "import": imports,
    }
    grid = asked.grid(model or asked.model, **given)
    check(grid)
    folder = out or Path(f"reproduce_{asked.name}")
    console = Console(soft_wrap=True, highlight=False)
    found = evaluate(grid, folder, console, workers=workers)
    _show(asked, grid, folder, model or asked.model, console)
    if found.failed:
        raise typer.Exit(FAILED)


def _show(asked: Any, grid: Any, folder: Path, model: str, console: Console) -> None:
    from tokenreduce.eval.reproduce import compare, environment, page
    from tokenreduce.eval.reproduce.comparison import HEAD, cells
    from tokenreduce.eval.sweep import Store
    from tokenreduce.files import replacing

    store = Store(folder)
    lines = compare(asked, grid, store)
    for column in asked.columns:
        shown = [dict(zip(HEAD, cells(line))) for line in lines if line.column == column]
        print_table(shown, f"{column.label} ({column.task}, {column.metric})")
    text = page(asked, lines, model, environment(grid, store))
    with replacing(folder / "page.md") as file:
        file.write(text.encode())
    console.print(f"Wrote {folder / 'page.md'}; tokenreduce report {folder} has all metrics", markup=False)


def _about(table: Any) -> dict[str, Any]:
    return {
        "table": table.name,
        "method": table.method,
        "model": table.model,
        "tasks": ", ".join(column.label for column in table.columns),
        "budgets": ", ".join(map(str, table.budgets)),
        "source": table.source,
    }
