"""``tokenreduce sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tokenreduce.cli.app import FAILED, Debug, app, print_table, teaching
from tokenreduce.cli.arguments import mapping
from tokenreduce.cli.options import Imports

if TYPE_CHECKING:
    from tokenreduce.eval.sweep import Cell, Grid, Tally


@app.command()
@teaching
def sweep(
    grid: Annotated[
        Path | None, typer.Argument(help="YAML file; flags replace what it says.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results, one file per cell.")] = Path("sweep_out"),
    model: Annotated[
        list[str] | None, typer.Option(help="`demo`, a folder or a hub id; may be given several times.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Task of lmms-eval; may be given several times.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Name, a composition such as fastervlm:0.5+fastv:64, or ./mine.py:Mine; several times. [default: all]"
        ),
    ] = None,
    imports: Imports = None,
    keep: Annotated[str | None, typer.Option(help="Budgets separated by commas. [default: 0.5,0.25,0.11]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per task. [default: all]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts per batch. [default: 1]")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds separated by commas, for sampled decoding and methods with chance, such as 0,1,2."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="lmms-eval's model that runs it, such as llava_hf. [default: by the model's type]"),
    ] = None,
    model_args: Annotated[
        str | None, typer.Option(help="Further arguments of that model, such as dtype=bfloat16,max_pixels=200704.")
    ] = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with tasks of your own.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time, one GPU each. [default: 1; on Ray: one per GPU or CPU]")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Run on Ray: local, auto, or the address of a cluster such as ray://host:10001.")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="Further tries of a cell whose worker died.")] = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed/--keep-failed", help="Take up cells that failed or were refused earlier.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and what is done, and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Compare methods x budgets x tasks x models through lmms-eval; run again to go on where it stopped.

    The unreduced model and `random` at every budget are always included. Every cell has a file of its own, named by all
    that determines it; a cell that fails is recorded, the rest goes on. Exit code 1 when cells failed.

    **Examples**

    - `tokenreduce sweep --model demo --task tr_demo_images --task tr_demo_video --limit 60` , then
      `tokenreduce report sweep_out`

    - `tokenreduce sweep grid.yaml --out results --workers 8`

    - `tokenreduce sweep grid.yaml --ray ray://head:10001 --dry-run`
    """
    from tokenreduce.eval.harness import require
    from tokenreduce.eval.recipe import literal
    from tokenreduce.eval.sweep import Grid, Store
    from tokenreduce.eval.sweep.checks import check, served

    require()
    flags = _given(
        model=model,
        tasks=task,
        methods=method,
        **({} if imports is None else {"import": imports}),
        keep=None if keep is None else [part for part in keep.split(",") if part.strip()],
        limit=limit,
        batch_size=batch_size,
        seeds=None if seeds is None else [literal(part.strip()) for part in seeds.split(",") if part.strip()],
        base=base,
        model_args=None if model_args is None else mapping(model_args, "--model-args"),
        include_path=None if include_path is None else [str(path) for path in include_path],
    )
    if grid is None and not flags.get("model"):
        raise ValueError(
            "neither a grid nor --model is given; for example tokenreduce sweep --model demo --task tr_demo_images"
        )
    made = Grid.of(flags) if grid is None else Grid.read(grid, **flags)
    check(made)
    made, left_out = served(made)
    store = Store(out)
    for why in left_out:
        Console(soft_wrap=True, highlight=False).print(f"left out: {why}", markup=False)
    if dry_run:
        _preview(made, store)
        return
    console = Console(soft_wrap=True, highlight=False)
    found = evaluate(made, out, console, workers=workers, ray=ray, retries=retries, retry=retry_failed)
    if found.done + found.skipped:
        console.print(f"Next: tokenreduce report {out}", markup=False)
    if found.failed:
        raise typer.Exit(FAILED)


def evaluate(
    grid: Grid,
    out: Path,
    console: Console,
    *,
    workers: int | None = None,
    ray: str | None = None,
    retries: int = 1,
    retry: bool = True,
) -> Tally:
    """Run the cells of ``grid`` into ``out``, a line on the ``console`` for each, and what became of them at the end."""
    from tokenreduce.eval.harness import told
    from tokenreduce.eval.sweep import SweepFailed, run
    from tokenreduce.eval.sweep.store import REFUSED

    def tell(status: str, cell: Cell, outcome: Any, tally: Tally) -> None:
        number, eta = tally.total - tally.left, tally.eta_s() or 0
        if outcome.result is not None:
            what = f"{told(outcome.result)} in {outcome.result['seconds']:.1f} s"
        else:
            why = f"{outcome.error['kind']}: {outcome.error['text']}"
            what = "refused, why is told at the end" if status == REFUSED else f"{status}, {why}"
        console.print(f"[{number}/{tally.total}] {cell}: {what}; {_minutes(eta)} left", markup=False)

    console.print(f"{len(grid.cells)} cells into {out}")
    try:
        found = run(grid, out, _pool(workers, ray, out), retries=retries, retry=retry, tell=tell)
    except SweepFailed as error:
        Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False)
        raise typer.Exit(FAILED) from None
    tell_broken(console, found.broken)
    console.print(
        f"{found.done} done, {found.skipped} were done before, {found.refused} refused, {found.failed} failed, in "
        f"{_minutes(found.seconds)}."
    )
    tell_errors(console, found.errors)
    return found


def tell_errors(console: Console, errors: dict[str, str]) -> None:
    """Every reason once, in full, and below it the cells that it holds for."""
    for text in dict.fromkeys(errors.values()):
        console.print(text, markup=False)
        for name in (name for name, why in errors.items() if why == text):
            console.print(f"  {name}", markup=False)


def tell_broken(console: Console, broken: dict[Path, str]) -> None:
    """Names the files of a sweep that hold no cell."""
    for file, why in broken.items():
        console.print(f"broken: {file}: {why}; counted as not done", markup=False)


def _given(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _pool(workers: int | None, ray: str | None, out: Path) -> Any:
    if ray is not None:
        from tokenreduce.eval.sweep.cluster import Actors

        return Actors(ray, workers)
    from tokenreduce.eval.sweep.pool import Processes

    return Processes(workers or 1, out / "logs")


def _preview(grid: Grid, store: Any) -> None:
    rows = [
        {
            "model": Path(c.model).name,
            "task": c.task,
            "method": c.recipe.name,
            "keep": c.recipe.keep,
            "state": store.status(c) or "to do",
        }
        for c in {c.key: c for c in grid.cells}.values()
    ]
    print_table(rows, f"{len(rows)} cells, {sum(row['state'] != 'done' for row in rows)} to do")
    tell_broken(Console(soft_wrap=True, highlight=False), store.broken)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
