"""``tokenreduce run``."""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, teaching
from tokenreduce.cli.arguments import asked, chosen_methods

if TYPE_CHECKING:
    from tokenreduce.cost import Report


class Positions(StrEnum):
    keep = "keep"
    renumber = "renumber"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.command()
@teaching
def run(
    model: Annotated[str, typer.Option(help="Local folder, hub id, or `demo` for the built-in model.")],
    method: Annotated[
        list[str], typer.Option(help="Name, or name:keep. Give it several times to compose methods in that order.")
    ],
    image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The picture. Optional for the demo model.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The question. Optional for the demo model.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Budget of a single method: a fraction such as 0.33, 1/3 or 1.0, or a count such as 64."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Another parameter, key=value; method.key=value when composing."),
    ] = None,
    positions: Annotated[
        Positions | None,
        typer.Option(metavar="<ids>", help="Position ids of kept tokens: keep, or renumber. [default: the method's]"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 64,
    dtype: Annotated[
        Dtype, typer.Option(metavar="<dtype>", help="float32, float16, bfloat16, or auto: as stored, float32 on a CPU.")
    ] = Dtype.auto,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    attn: Annotated[str, typer.Option(help="Attention backend: sdpa, eager, flash_attention_2.")] = "sdpa",
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
    if model != "demo" and (image is None or prompt is None):
        missing = "--image" if image is None else "--prompt"
        raise ValueError(
            f"{missing} is missing; only --model demo brings its own. For example {missing} "
            + ("photo.jpg" if image is None else '"What is in the picture?"')
        )
    picture, question = asked(image, prompt)
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
