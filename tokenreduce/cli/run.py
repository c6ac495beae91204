"""``tokenreduce run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenreduce.cli.app import Debug, app, print_table, teaching
from tokenreduce.cli.arguments import chosen_methods
from tokenreduce.cli.options import (
    Attention,
    Device,
    Dtype,
    DtypeName,
    Frames,
    Images,
    Imports,
    Keep,
    MaxNewTokens,
    Methods,
    Model,
    Parameters,
    PositionIds,
    Prompt,
    Videos,
)
from tokenreduce.cli.output import Force, JsonFile, JsonOutput, check_picture
from tokenreduce.cli.prompt import given_prompt, load_prompt

if TYPE_CHECKING:
    from rich.console import Console

    from tokenreduce.cost import Report


@app.command()
@teaching
def run(
    model: Model,
    method: Methods,
    image: Images = None,
    video: Videos = None,
    frames: Frames = 8,
    prompt: Prompt = None,
    keep: Keep = None,
    parameter: Parameters = None,
    imports: Imports = None,
    positions: PositionIds = None,
    max_new_tokens: MaxNewTokens = 64,
    dtype: DtypeName = Dtype.auto,
    device: Device = "auto",
    attn: Attention = "sdpa",
    draw: Annotated[Path | None, typer.Option(help="Write a picture of the kept tokens here.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Answer and time without reduction, too.")
    ] = True,
    json: JsonFile = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Answer one question about a picture, several, or a video on fewer visual tokens, and say what that saved.

    **Examples**

    - `tokenreduce run --model demo --method hiprune --keep 0.25 --draw kept.png`

    - `tokenreduce run --model ./my-llava --method fastv --keep 1/2 -p layer=3 --image cat.jpg --prompt "What is this?"`

    - `tokenreduce run --model ./my-llava --method fastervlm:0.5 --method fastv:64 --image cat.jpg --prompt "Describe."`

    - `tokenreduce run --model ./my-qwen --method holitom --keep 0.2 --video cat.mp4 --frames 16 --prompt "What happens?"`
    """
    chosen = chosen_methods(method, keep, parameter or [], positions.value if positions else None, imports)
    pictures, question = given_prompt(model, image, video, frames, prompt)
    output = JsonOutput("run", json, force)
    if draw is not None:
        check_picture(draw)
    asked = load_prompt(model, pictures, question, dtype.value, device, attn)

    from tokenreduce.cli.measured import measured
    from tokenreduce.eval.results import environment

    found: dict[str, Any] = {"model": model, "prompt": question, "methods": [repr(m) for m in chosen]}
    if compare:
        found["unreduced_answer"] = asked.answer([], max_new_tokens).texts[0]
    reduced = asked.answer(chosen, max_new_tokens)
    trace, report = reduced.trace, reduced.report
    assert trace is not None and report is not None, "a reduced answer has both"  # noqa: PT018
    found["answer"] = reduced.texts[0]
    if compare:
        costs = measured(asked, chosen, report)
        report, first = costs.report, costs.rows["time to first token"]
        found["first_token_ms"] = {name: first[name] for name in ("unreduced", "reduced")}
        found["first_token_speedup"] = vars(costs.speedup)
        found["measured"] = costs.rows
    found |= {"report": report.as_dict(), "environment": environment(asked.model)}
    if draw is not None:
        trace.show(pictures, asked.processor).save(draw)
    _tell(output.console, found, report, draw)
    if compare:
        print_table(costs.table(), "Time and memory", output.console)
    output.write(found)


def _tell(console: Console, found: dict[str, Any], report: Report, picture: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = [("prompt", found["prompt"])]
    if "unreduced_answer" in found:
        rows.append(("unreduced answer", found["unreduced_answer"]))
    rows += [("answer", found["answer"]), ("", "")]
    rows += [(label, value.strip()) for label, _, value in (line.partition("  ") for line in str(report).splitlines())]
    if "first_token_speedup" in found:
        ms, ratio = found["first_token_ms"], found["first_token_speedup"]
        noise = ": no difference beyond noise" if ratio["low"] < 1 < ratio["high"] else ""
        rows.append(
            (
                "first token",
                f"{ms['reduced']:.1f} ms, unreduced {ms['unreduced']:.1f} ms (medians, vision tower included); turn by turn "
                f"{ratio['median']:.2f} times as fast [{ratio['low']:.2f}, {ratio['high']:.2f}]{noise}",
            )
        )
    grid = Table.grid(padding=(0, 2))
    if picture is not None:
        rows.append(("wrote", str(picture)))
    for label, value in rows:
        grid.add_row(Text(label, style="bold"), Text(value))
    console.print(grid, soft_wrap=False)
