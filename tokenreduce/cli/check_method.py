"""``tokenreduce check-method``."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenreduce.cli.app import FAILED, Debug, app, print_table, teaching
from tokenreduce.cli.options import Keep, Parameters
from tokenreduce.cli.output import Force, JsonFile, JsonOutput


@app.command("check-method")
@teaching
def check_method(
    method: Annotated[str, typer.Argument(help="FILE.py:Class, package.module:Class, or the name of a known method.")],
    keep: Keep = None,
    parameter: Parameters = None,
    family: Annotated[
        list[str] | None,
        typer.Option(help="A tiny model to try it on; may be repeated. [default: llava, llava_next, qwen2_5_vl]"),
    ] = None,
    json: JsonFile = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Try a method of your own against the contracts, on tiny models, in seconds and without a download.

    Leaves with 1 when a contract is broken, and says which, what was seen, and what to do.

    **Examples**

    - `tokenreduce check-method ./mine.py:Mine --keep 0.5`

    - `tokenreduce check-method fastv -p layer=1 --family llava`
    """
    import tokenreduce as tr
    from tokenreduce.cli.arguments import mapping
    from tokenreduce.eval.method_check import FAMILIES, ContractViolation
    from tokenreduce.eval.recipe import budget
    from tokenreduce.loading import quiet

    quiet()
    output = JsonOutput("check-method", json, force)
    given = {} if keep is None else {"keep": budget(keep, "--keep")}
    for text in parameter or []:
        given |= mapping(text, "--parameter")
    try:
        check = tr.check_method(method, families=family or FAMILIES, **given)
    except ContractViolation as violation:
        check = violation.check
    print_table(check.table(), f"Contracts of {check.name}", output.console)
    for reason in check.reasons():
        output.console.print(f"- {reason}", markup=False)
    output.write(check.as_dict())
    if check.wrong:
        raise typer.Exit(FAILED)
