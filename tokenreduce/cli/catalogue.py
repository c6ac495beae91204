"""``tokenreduce methods | models``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, print_table, teaching
from tokenreduce.cli.options import Imports


@app.command()
@teaching
def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method to explain, or ./mine.py:Mine. [default: all]", show_default=False)
    ] = None,
    fitting: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="<model>",
            help="Only what fits this model: `demo`, a folder, a hub id, or a type such as llava.",
        ),
    ] = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """List all methods: where each acts, what it looks at, its parameters; or explain one; or say what fits a model.

    **Examples**

    - `tokenreduce methods fastv` : every parameter of FastV, then
      `tokenreduce run --model demo --method fastv --keep 0.5 -p layer=1`

    - `tokenreduce methods --for ./my-llava` : what fits, where it acts there, what stands in, and why the rest does not
    """
    import tokenreduce as tr
    from tokenreduce.own_methods import load

    load(imports or ())
    if fitting is not None:
        _list_for(fitting, name)
    elif name is not None:
        _explain(name)
    else:
        # a line per parameter; positions, which all have, is in the help of `run`
        rows = [
            {**row, "parameters": "\n".join(p for p in row["parameters"].split(", ") if not p.startswith("positions="))}
            for row in tr.methods()
        ]
        print_table(rows, "Methods, baselines last")


def _explain(name: str) -> None:
    import tokenreduce as tr

    found = tr.explain(name)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{found.name}: {found.title}", style="bold", markup=False)
    for what, text in found.facts.items():
        console.print(f"  {what}: {text}", markup=False)
    print_table(found.parameters, "Parameters; defaults are the paper's where nothing else is said")
    console.print(
        f"Try it: tokenreduce run --model demo --method {name} --keep 0.25, and tokenreduce methods --for MODEL {name}",
        markup=False,
    )


def _list_for(place: str, name: str | None) -> None:
    import tokenreduce as tr
    from tokenreduce.cli.loading import empty_model
    from tokenreduce.loading import quiet
    from tokenreduce.registry import named

    quiet()
    rows: list[dict[str, Any]] = tr.methods(empty_model(place))
    if name is not None:
        wanted = named(name)[0]
        rows = [row for row in rows if row["name"] == wanted] or [{"name": wanted, "fits": "no: it acts on pictures"}]
    fit = [row for row in rows if row["fits"] != "no"]
    if fit:
        print_table(fit, f"{len(fit)} methods fit {place} with their defaults")
    if len(rows) > len(fit):
        print_table(
            [{"name": r["name"], "why not": r.get("remark", r["fits"])} for r in rows if r not in fit], "Others"
        )


@app.command()
@teaching
def models(debug: Debug = False) -> None:
    """List the model families that can be wrapped, by `config.model_type`, and those that are refused, with the reason.

    **Example**

    - `tokenreduce models`, then `tokenreduce run --model ./my-llava ...`
    """
    import tokenreduce as tr
    from tokenreduce.loading import quiet

    quiet()
    print_table(tr.families(), "Model families, by the model_type in config.json")
    print_table(tr.refused(), "Refused, and what to do instead")
