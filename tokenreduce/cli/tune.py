"""``tokenreduce tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tokenreduce.cli.app import FAILED, Debug, app, teaching
from tokenreduce.cli.arguments import mapping
from tokenreduce.cli.options import Imports

if TYPE_CHECKING:
    from tokenreduce.eval.tune import Choice, Point


@app.command()
@teaching
def tune(
    model: Annotated[str, typer.Option(help="`demo`, a folder or a hub id.")],
    task: Annotated[str, typer.Option(help="Task of lmms-eval to calibrate on.")],
    target: Annotated[float | None, typer.Option(help="Share of the unreduced score to keep, such as 0.98.")] = None,
    flops: Annotated[float | None, typer.Option(help="Share of the prefill FLOPs allowed, such as 0.4.")] = None,
    speedup: Annotated[
        float | None, typer.Option(help="How many times fewer prefill FLOPs, such as 2: the same as --flops 0.5.")
    ] = None,
    ms: Annotated[
        float | None, typer.Option(help="Milliseconds to the first token allowed, as measured here, such as 80.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Candidate, or ./mine.py:Mine; several times. [default: all]")
    ] = None,
    imports: Imports = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions of the calibration set.")] = 64,
    evaluations: Annotated[
        int, typer.Option(min=1, help="Most evaluations, without that of the unreduced model.")
    ] = 40,
    out: Annotated[Path, typer.Option(help="Folder for the evaluations; a second call goes on from them.")] = Path(
        "tune_out"
    ),
    base: Annotated[
        str | None, typer.Option(help="lmms-eval's model that runs it. [default: by the model's type]")
    ] = None,
    model_args: Annotated[str | None, typer.Option(help="Further arguments of that model.")] = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with tasks of your own.")] = None,
    debug: Debug = False,
) -> None:
    """Find a method and a budget: the cheapest that keeps so much accuracy, or the most accurate for its cost.

    Bisects the budgets of every method on a small calibration set, best prospects first, and says what it would pick and why.
    `random` takes part as a control.

    **Examples**

    - `tokenreduce tune --model demo --task tr_demo_images --target 0.98`

    - `tokenreduce tune --model demo --task tr_demo_images --speedup 2`

    - `tokenreduce tune --model ./my-llava --task mme --flops 0.4 --method hiprune --method fastervlm --limit 200`
    """
    import dataclasses

    import tokenreduce as tr
    from tokenreduce.eval.harness import require
    from tokenreduce.eval.results import write_json
    from tokenreduce.eval.sweep import Grid, Store
    from tokenreduce.eval.sweep.checks import check
    from tokenreduce.eval.sweep.pool import Processes
    from tokenreduce.eval.tune import Calibration, Wish, search
    from tokenreduce.own_methods import load
    from tokenreduce.registry import named, shortens

    require()
    flops = _flops(flops, speedup)
    Wish(target, flops, ms)  # raises before anything runs
    load(imports or ())
    console = Console(soft_wrap=True, highlight=False)
    chosen = [named(name)[0] for name in method or []]
    grid = Grid.of({
        "model": model, "tasks": [task], "methods": chosen, "import": imports, "keep": [0.5], "limit": limit, "base": base,
        "model_args": None if model_args is None else mapping(model_args, "--model-args"),
        "include_path": [str(path) for path in include_path or []],
    })  # fmt: skip
    check(grid)
    candidates = list(
        dict.fromkeys(
            ["random", *(chosen or [r["name"] for r in tr.methods() if "image" in r["media"] and shortens(r["name"])])]
        )
    )

    def told(name: str, keep: float) -> Point:
        point = calibration.point(name, keep)
        console.print(
            f"{name} keep={keep}: {_kept(point)}, {_cost(point)}",
            markup=False,
        )
        return point

    with Calibration(grid.cells[0], Store(out), Processes(1, out / "logs")).ready(target is not None) as calibration:
        found = search(candidates, told, target=target, flops=flops, ms=ms, evaluations=evaluations)
    write_json(out / "choice.json", dataclasses.asdict(found))
    for line in reasons(found, limit):
        console.print(line, markup=False)
    if found.best is None:
        raise typer.Exit(FAILED)


def _flops(flops: float | None, speedup: float | None) -> float | None:
    """The share of FLOPs that is allowed, of whichever way it was said."""
    if speedup is None:
        return flops
    if flops is not None:
        raise ValueError(f"--speedup={speedup:g} and --flops={flops:g} say the same in two ways; give one of them")
    if not speedup >= 1:
        raise ValueError(f"--speedup={speedup:g}; allowed: a number from 1 on, such as 2")
    return 1 / speedup


def reasons(found: Choice, questions: int) -> list[str]:
    """What was picked and why, in sentences."""
    from tokenreduce.downscale import Downscale
    from tokenreduce.eval.recipe import UNREDUCED

    wish, best = found.wish, found.best
    said = [""]
    if best is None:
        said.append(f"Nothing that was tried would {wish}; take the {UNREDUCED} model.")
        if found.points:
            near = min(found.points, key=lambda p: -p.gain if wish.target is not None else p.ttft_ms or p.flops)
            said.append(f"Nearest: {near.method} keep={near.keep} with {_kept(near)} at {_cost(near)}.")
        return said
    call = f"tr.wrap(model, {best.method!r}, keep={best.keep})"
    if best.method == Downscale.name:
        call = f"tr.scaled_down(picture, {best.keep}, processor)"
    said.append(f"Pick: {best.method} keep={best.keep}, that is {call}")
    said.append(
        f"Why: {_kept(best)} on {questions} questions with {best.tokens:.0%} of the visual tokens and "
        f"{_cost(best)}; "
        + ("the cheapest found" if wish.target is not None else "the most accurate found") + f" to {wish}."
    )  # fmt: skip
    below = [p for p in found.points if p.method == best.method and p.keep < best.keep]
    if wish.target is not None and below:
        next_one = max(below, key=lambda p: p.keep)
        said.append(f"Its next smaller budget tried, {next_one.keep}, has {_kept(next_one)}.")
    for other in found.ranked[1:3]:
        said.append(f"Then: {other.method} keep={other.keep} with {_kept(other)} at {_cost(other)}.")
    control = [p for p in found.points if p.method == "random"]
    if best.method == "random":
        said.append("No method beats dropping at random here: the questions may not need the picture.")
    elif control:
        near = min(control, key=lambda p: abs(p.flops - best.flops))
        said.append(f"Dropping at random has {_kept(near)} at {_cost(near)}.")
    if wish.target is not None and best.kept_low is not None and best.kept_low < wish.target:
        said.append(
            f"The interval reaches below the target: {questions} questions cannot tell for certain; a larger --limit can."
        )
    if found.exhausted:
        said.append("Evaluations ran out before everything was settled; more --evaluations may find better.")
    for name, why in found.refused.items():
        said.append(f"Left out {name}: {why}")
    return said


def _cost(point: Point) -> str:
    first = "" if point.ttft_ms is None else f", the first token after {point.ttft_ms:.3g} ms"
    return f"{point.flops:.0%} of the prefill FLOPs{first}"


def _kept(point: Point) -> str:
    if point.kept is None or point.kept_low is None or point.kept_high is None:
        way = "better" if point.gain >= 0 else "worse"
        return f"a score {way} by {abs(point.gain):.4g} than unreduced"
    return f"{point.kept:.1%} [{100 * point.kept_low:.0f}, {100 * point.kept_high:.0f}] of the unreduced score"
