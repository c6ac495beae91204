"""``tokenreduce methods | models``."""

from __future__ import annotations

from tokenreduce.cli.app import Debug, app, print_table, teaching


@app.command()
@teaching
def methods(debug: Debug = False) -> None:
    """List all methods: where each acts, what it looks at, its parameters.

    **Example**

    - `tokenreduce methods`, then `tokenreduce run --model demo --method fastv --keep 0.5 -p layer=1`
    """
    import tokenreduce as tr

    # a line per parameter; positions, which all have, is in the help of `run`
    rows = [
        {**row, "parameters": "\n".join(p for p in row["parameters"].split(", ") if not p.startswith("positions="))}
        for row in tr.methods()
    ]
    print_table(rows, "Methods, baselines last")


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
