"""``tokenreduce doctor``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from tokenreduce.cli.app import FAILED, Debug, app, print_table, teaching


@app.command()
@teaching
def doctor(
    family: Annotated[
        str | None, typer.Option(help="One family, such as qwen2_5_vl. [default: all]", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    debug: Debug = False,
) -> None:
    """Find out whether the installed libraries fit: every family at every stage, in a minute, without a download.

    A tiny model of each family is wrapped with one method per stage, and its logits and its written tokens are compared
    with those of a sequence that is really shorter: *right*, *refused* with a reason, or *wrong*. Leaves with 1 when
    anything is wrong.

    **Examples**

    - `tokenreduce doctor`

    - `tokenreduce doctor --family qwen2_5_vl --json`
    """
    import tokenreduce as tr
    from tokenreduce.loading import quiet

    quiet()
    console = Console(stderr=True)
    with console.status("") as status:
        found = tr.doctor(family, progress=lambda name: status.update(name))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        print_table(found.versions, "Libraries")
        print_table(found.table(), "Wrapped against really shortened")
        for reason in found.reasons():
            Console(soft_wrap=True, highlight=False).print(f"- {reason}", markup=False)
    if found.wrong:
        raise typer.Exit(FAILED)
