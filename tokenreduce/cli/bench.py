"""``tokenreduce bench``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tokenreduce.cli.app import Debug, app, teaching
from tokenreduce.cli.arguments import budget, method_names
from tokenreduce.cli.options import Attention, Device, Dtype, Imports
from tokenreduce.cli.output import Force, JsonFile, JsonOutput, check_picture
from tokenreduce.eval.recipe import number


class What(StrEnum):
    ops = "ops"
    models = "models"
    towers = "towers"


@app.command()
@teaching
def bench(
    what: Annotated[What, typer.Argument(help="`ops`, `models` or `towers`.", show_default=False)],
    only: Annotated[str | None, typer.Option(help="ops: names separated by commas. [default: all]")] = None,
    shape: Annotated[
        str, typer.Option(help="models: llava-1.5-7b, llava-next, qwen2.5-vl-7b, llava-ov-video or demo.")
    ] = "llava-1.5-7b",
    methods: Annotated[
        str | None, typer.Option(help="models: names separated by commas. [default: all that the shape takes]")
    ] = None,
    imports: Imports = None,
    keep: Annotated[str | None, typer.Option(help="models: budget. [default: the shape's]")] = None,
    tower: Annotated[str, typer.Option(help="towers: vit-b-16 or vit-l-16-384.")] = "vit-b-16",
    batch: Annotated[
        str | None, typer.Option(help="models, towers: batch sizes separated by commas. [default: 1; 1,8]")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=2, help="Decoder layers, or blocks of a tower. [default: by device; all]")
    ] = None,
    tower_layers: Annotated[int | None, typer.Option(min=3, help="models: tower layers. [default: by device]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds after a round of warm-up.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; with 1, the time of this process alone counts.")
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        Dtype, typer.Option(metavar="<dtype>", help="[default: float32 on a CPU, else bfloat16]")
    ] = Dtype.auto,
    attn: Attention = "sdpa",
    json: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="<png>", help="models: draw milliseconds by stage and method here.")
    ] = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Measure speed: operations, whole models, vision towers; always against the unreduced or plain form in turns.

    Prints a table in Markdown, to be pasted.

    `ops` compares every operation with the same mathematics written plainly and with what the device can do at most.
    `models` builds a model at its true widths with random weights, and as many layers as memory allows; it goes from the
    image to the first token and says what tower, prefill and decoding each take. `towers` runs ToMe in vision transformers
    of timm.

    **Examples**

    - `tokenreduce bench ops --only bipartite_matching,energy_score --threads 1`

    - `tokenreduce bench models --shape llava-1.5-7b --methods fastervlm,hiprune --keep 64 --json llava.json --plot llava.png`

    - `tokenreduce bench towers --tower vit-l-16-384 --layers 6 --batch 4`
    """
    import torch

    from tokenreduce.cli.loading import pick_device
    from tokenreduce.loading import quiet
    from tokenreduce.tables import Table

    if plot is not None:
        check_picture(plot, "--plot")
        if what is not What.models:
            raise ValueError(
                f"--plot={str(plot)!r} with `bench {what}`; allowed: `bench models`, whose stages it draws"
            )
    output = JsonOutput("bench", json, force)
    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    place = pick_device(device)
    name = dtype.value if dtype is not Dtype.auto else "float32" if place.type == "cpu" else "bfloat16"
    console = output.console
    with console.status("building") as status:
        from tokenreduce.eval.bench import run

        run_at = run.Place(place, getattr(torch, name), rounds, status.update)
        if what is What.ops:
            content, rows, notes = run.operations_table(run_at, _names(only))
        elif what is What.models:
            kept = None if keep is None else number(budget(keep, "--keep"), "--keep")
            content, rows, notes = run.models_table(
                run_at, shape, method_names(methods, imports), kept, _sizes(batch or "1"), layers, tower_layers, attn
            )
        else:
            content, rows, notes = run.towers_table(run_at, tower, _sizes(batch or "1,8"), layers)
    for note in notes:
        console.print(note, markup=False)
    console.print(content["title"], style="bold", markup=False)
    console.print(Table(rows).markdown(), markup=False)
    output.write(content)
    if plot is not None:
        from tokenreduce.eval.bench.plot import plot as draw

        draw(content, plot)
        console.print(f"wrote {plot}", markup=False)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _sizes(text: str) -> list[int]:
    sizes = [int(part) if part.isdigit() else 0 for part in _names(text) or ()]
    if not sizes or not all(sizes):
        raise ValueError(f"--batch={text!r}; allowed: whole numbers from 1, separated by commas, such as 1,8")
    return sizes
