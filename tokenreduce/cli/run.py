"""``tokenreduce run``."""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, teaching
from tokenreduce.cli.arguments import chosen_methods
from tokenreduce.cli.options import (
    Attention,
    Device,
    Dtype,
    DtypeName,
    ImageFile,
    Keep,
    MaxNewTokens,
    Methods,
    Model,
    Parameters,
    PositionIds,
    Prompt,
    one_prompt,
)

if TYPE_CHECKING:
    from tokenreduce.cost import Report


@app.command()
@teaching
def run(
    model: Model,
    method: Methods,
    image: ImageFile = None,
    prompt: Prompt = None,
    keep: Keep = None,
    parameter: Parameters = None,
    positions: PositionIds = None,
    max_new_tokens: MaxNewTokens = 64,
    dtype: DtypeName = Dtype.auto,
    device: Device = "auto",
    attn: Attention = "sdpa",
    draw: Annotated[Path | None, typer.Option(help="Write a picture of the kept tokens here.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Answer and time without reduction, too.")
    ] = True,
    json: Annotated[Path | None, typer.Option(help="Write answers and report here.")] = None,
    debug: Debug = False,
) -> None:
    """Answer one question about one picture on fewer visual tokens, and say what that saved.

    **Examples**

    - `tokenreduce run --model demo --method hiprune --keep 0.25 --draw kept.png`

    - `tokenreduce run --model ./my-llava --method fastv --keep 1/2 -p layer=3 --image cat.jpg --prompt "What is this?"`

    - `tokenreduce run --model ./my-llava --method fastervlm:0.5 --method fastv:64 --image cat.jpg --prompt "Describe."`
    """
    import tokenreduce as tr
    from tokenreduce.loading import load, model_inputs, quiet

    chosen = chosen_methods(method, keep, parameter or [], positions.value if positions else None)
    picture, question = one_prompt(model, image, prompt)
    for path, option in ((draw, "--draw"), (json, "--json")):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{option}={str(path)!r}: the folder {str(path.parent)!r} does not exist; make it first")
    quiet()
    network, processor = load(model, dtype.value, device, attn)
    inputs = model_inputs(processor, picture, question, network)

    from tokenreduce.eval.results import environment, write_json
    from tokenreduce.timing import speed_up, time_prefill

    def answer() -> str:
        made = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        (text,) = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip()

    found: dict[str, Any] = {"model": model, "prompt": question, "methods": [repr(m) for m in chosen]}
    if compare:
        found["unreduced_answer"] = answer()
    with tr.wrapped(network, *chosen):
        found["answer"] = answer()
        report, trace = tr.report(network), tr.trace(network)
    if compare:
        laps = time_prefill(network, inputs, {"without": nullcontext, "with": lambda: tr.wrapped(network, *chosen)})
        before, after = ([lap.total_s for lap in laps[name]] for name in ("without", "with"))
        found["first_token_ms"] = {
            "unreduced": statistics.median(before) * 1e3,
            "reduced": statistics.median(after) * 1e3,
        }
        found["first_token_speedup"] = vars(speed_up(before, after))
    found |= {"report": report.as_dict(), "environment": environment(network)}
    if draw is not None:
        from tokenreduce.draw import draw as draw_tokens

        draw_tokens(trace, picture, processor).save(draw)
    if json is not None:
        write_json(json, found)
    _tell(found, report, [str(path) for path in (draw, json) if path is not None])


def _tell(found: dict[str, Any], report: Report, written: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = [("prompt", found["prompt"])]
    if "unreduced_answer" in found:
        rows.append(("unreduced answer", found["unreduced_answer"]))
    rows += [("answer", found["answer"]), ("", "")]
    rows += [(label, value.strip()) for label, _, value in (line.partition("  ") for line in str(report).splitlines())]
    if "first_token_speedup" in found:
        ms, ratio = found["first_token_ms"], found["first_token_speedup"]
        rows.append(
            (
                "first token",
                f"{ms['reduced']:.1f} ms, unreduced {ms['unreduced']:.1f} ms: {ratio['median']:.2f} times as fast "
                f"[{ratio['low']:.2f}, {ratio['high']:.2f}], vision tower included",
            )
        )
    grid = Table.grid(padding=(0, 2))
    for label, value in [*rows, *(("wrote", path) for path in written)]:
        grid.add_row(Text(label, style="bold"), Text(value))
    Console().print(grid)
