"""``tokenreduce doctor``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tokenreduce.cli.app import FAILED, Debug, app, print_table, teaching
from tokenreduce.cli.output import Force, JsonFile, JsonOutput


@app.command()
@teaching
def doctor(
    family: Annotated[
        str | None, typer.Option(help="One family, such as qwen2_5_vl. [default: all]", show_default=False)
    ] = None,
    json: JsonFile = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Find out whether the installed libraries fit: every family at every stage, in two minutes, without a download.

    A tiny model of each family is wrapped with one method per stage, and its logits and its written tokens are compared
    with those of a sequence that is really shorter: *right*, *refused* with a reason, or *wrong*. Leaves with 1 when
    anything is wrong.

    **Examples**

    - `tokenreduce doctor`

    - `tokenreduce doctor --family qwen2_5_vl --json -`
    """
    import tokenreduce as tr
    from tokenreduce.loading import quiet

    quiet()
    output = JsonOutput("doctor", json, force)
    with Console(stderr=True).status("") as status:
        found = tr.doctor(family, progress=lambda name: status.update(name))
    print_table(found.versions, "Libraries", output.console)
    print_table(found.table(), "Wrapped against really shortened", output.console)
    for reason in found.reasons():
        output.console.print(f"- {reason}", markup=False)
    output.write(found.as_dict())
    if found.wrong:
        raise typer.Exit(FAILED)
