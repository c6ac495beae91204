"""``tokenreduce demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, teaching
from tokenreduce.cli.arguments import budget, method_names
from tokenreduce.cli.options import Imports
from tokenreduce.eval.recipe import number


@app.command()
@teaching
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the pictures.")] = Path("demo_out"),
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures, up to 6 questions each. [default: up to 40]", show_default=False),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Names separated by commas. [default: one of each idea, and controls]", show_default=False),
    ] = None,
    imports: Imports = None,
    every: Annotated[bool, typer.Option("--all", help="Every method, not only a choice.")] = False,
    keep: Annotated[str, typer.Option(help="Budgets separated by commas: fractions, or counts.")] = "1.0,0.5,0.25,0.11",
    seed: Annotated[int, typer.Option(help="Of the pictures and questions.")] = 0,
    debug: Debug = False,
) -> None:
    """Compare methods at several budgets on the built-in model: accuracy, speed, memory, pictures.

    Really generates answers and really times them, on the processor at hand; nothing is downloaded. Writes
    `results.json`, two contact sheets `overview_*.png` and one picture per method and budget.

    **Examples**

    - `tokenreduce demo`

    - `tokenreduce demo --all`

    - `tokenreduce demo --methods hiprune,random --keep 0.5,0.1 --images 100`

    - `tokenreduce demo --methods ./mine.py:Mine,random`
    """
    if every and methods is not None:
        raise ValueError("--all and --methods both say which methods; give one of them")
    console = Console()
    names = method_names(methods, imports)
    budgets = [number(budget(part, "--keep"), "--keep") for part in keep.split(",") if part.strip()]
    from tokenreduce.loading import quiet

    quiet()
    from tokenreduce.eval.demo.run import run

    run(out, methods="all" if every else names, keeps=budgets, images=images, seed=seed, console=console)
