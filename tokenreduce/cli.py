"""``tokenreduce demo | run | methods | models``: the toolkit from the command line."""

from __future__ import annotations

import ast
import functools
import statistics
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from PIL import Image

    from tokenreduce.cost import Report
    from tokenreduce.method import Method

# Nothing heavy is imported above: help appears at once. Commands import torch and transformers when they run.
FAILED, USAGE = 1, 2

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Run vision-language models on fewer visual tokens.

**Examples**

- `tokenreduce demo` : every method on a small built-in model, about two minutes on a laptop, no download

- `tokenreduce run --model demo --method hiprune --keep 0.25 --draw kept.png` : one prompt, and a picture of it

- `tokenreduce run --model llava-hf/llava-1.5-7b-hf --method fastervlm --keep 64 --image cat.jpg --prompt "What?"`

- `tokenreduce methods` and `tokenreduce models` : what there is
""",
)


class Positions(StrEnum):
    keep = "keep"
    renumber = "renumber"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def _teaching(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into one line on stderr: 2 for what the user can correct, 1 for a failed run; --debug raises them."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped")
            raise typer.Exit(FAILED) from None
        except Exception as error:
            if kwargs.get("debug"):
                raise
            ours = isinstance(error, (ValueError, TypeError, FileNotFoundError)) and _raised_by_tokenreduce(error)
            text = " ".join(str(error).split()) or type(error).__name__
            if not ours:
                text = f"{type(error).__name__}: {text[:500]} (run again with --debug for the traceback)"
            console = Console(stderr=True, soft_wrap=True, highlight=False)
            console.print("[bold red]Error:[/] ", end="")
            console.print(text, markup=False)
            raise typer.Exit(USAGE if ours else FAILED) from None

    return guarded


def _raised_by_tokenreduce(error: BaseException) -> bool:
    frames = [frame.f_globals for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1] is globals() or str(frames[-1].get("__name__")).partition(".")[0] == "tokenreduce"


def _version(wanted: bool) -> None:
    if wanted:
        from tokenreduce import __version__

        typer.echo(f"tokenreduce {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]


@app.command()
@_teaching
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the pictures.")] = Path("demo_out"),
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures, up to 6 questions each. [default: up to 40]", show_default=False),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names separated by commas. [default: all]", show_default=False)
    ] = None,
    keep: Annotated[str, typer.Option(help="Budgets separated by commas: fractions, or counts.")] = "1.0,0.5,0.25,0.11",
    seed: Annotated[int, typer.Option(help="Of the pictures and questions.")] = 0,
    debug: Debug = False,
) -> None:
    """Compare all methods at several budgets on the built-in model: accuracy, speed, memory, pictures.

    Really generates answers and really times them, on the processor at hand; nothing is downloaded. Writes
    `results.json`, two contact sheets `overview_*.png` and one picture per method and budget.

    **Examples**

    - `tokenreduce demo`

    - `tokenreduce demo --methods hiprune,random --keep 0.5,0.1 --images 100`
    """
    console = Console()
    names = None if methods is None else [name.strip().lower() for name in methods.split(",") if name.strip()]
    budgets = [_budget(part, "--keep") for part in keep.split(",") if part.strip()]
    from tokenreduce.loading import quiet

    quiet()
    from tokenreduce.eval.demo import show

    show.run(out, methods=names, keeps=budgets, images=images, seed=seed, console=console)


@app.command()
@_teaching
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

    chosen = _methods(method, keep, parameter or [], positions.value if positions else None)
    if model != "demo" and (image is None or prompt is None):
        missing = "--image" if image is None else "--prompt"
        raise ValueError(
            f"{missing} is missing; only --model demo brings its own. For example {missing} "
            + ("photo.jpg" if image is None else '"What is in the picture?"')
        )
    picture, question = _asked(image, prompt)
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


@app.command()
@_teaching
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
    _print_table(rows, "Methods, baselines last")


@app.command()
@_teaching
def models(debug: Debug = False) -> None:
    """List the model families that can be wrapped, by `config.model_type`.

    **Example**

    - `tokenreduce models`, then `tokenreduce run --model ./my-llava ...`
    """
    import tokenreduce as tr
    from tokenreduce.loading import quiet

    quiet()
    _print_table(tr.families(), "Model families, by the model_type in config.json")


def main() -> None:
    """Entry point of the console script ``tokenreduce``."""
    app()


def _budget(text: str, argument: str) -> float | int:
    """A budget from text: ``64`` is a count, ``0.25``, ``1/3`` and ``1.0`` are fractions."""
    from tokenreduce.tokens import Budget

    try:
        if "/" in text:
            above, _, below = text.partition("/")
            value: float | int = float(above) / float(below)
        else:
            value = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"{argument}={text!r} is not a budget; allowed: a fraction in (0, 1] such as 0.33, 1/3 or 1.0, or a count "
            "such as 64. For example --keep 0.25"
        ) from None
    return Budget(value).keep


def _methods(names: list[str], keep: str | None, parameters: list[str], positions: str | None) -> list[Method]:
    """Instances from what stands on the command line."""
    from tokenreduce.method import make

    split = [name.partition(":") for name in names]
    given: list[dict[str, Any]] = [{"keep": _budget(own, f"--method {name}:")} if own else {} for name, _, own in split]
    if keep is not None:
        if len(names) > 1 or given[0]:
            raise ValueError(
                f"--keep={keep} is ambiguous beside {' '.join(f'--method {name}' for name in names)}; "
                "write each budget behind its method, for example --method fastervlm:0.5 --method fastv:64"
            )
        given[0]["keep"] = _budget(keep, "--keep")
    for text in parameters:
        path, equals, value = text.partition("=")
        owner, dot, key = path.rpartition(".")
        places = [i for i, (name, _, _) in enumerate(split) if not dot or name == owner]
        if not equals or not key or len(places) != 1:
            raise ValueError(
                f"--parameter={text!r}; allowed: key=value for a single method, or method.key=value with one of "
                f"{', '.join(name for name, _, _ in split)}. For example -p layer=2 or -p fastv.layer=2"
            )
        given[places[0]][key] = _literal(value)
    for settings in given:
        if positions is not None:
            settings["positions"] = positions
    return [make(name, **settings) for (name, _, _), settings in zip(split, given)]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def _asked(image: Path | None, prompt: str | None) -> tuple[Image.Image, str]:
    """The picture and the question; where one is not given, the demo's."""
    from PIL import Image, UnidentifiedImageError

    if image is not None:
        try:
            with Image.open(image) as opened:
                picture = opened.convert("RGB")
        except (UnidentifiedImageError, OSError):
            raise ValueError(
                f"--image={str(image)!r} is not a picture that Pillow can read; give a PNG or JPEG"
            ) from None
        return picture, prompt or "how many objects are there?"
    from tokenreduce.eval.demo.scenes import questions

    question = next(q for q in questions("test", 50) if q.kind == "color" and len(q.scene.things) >= 4)
    return question.image, prompt or question.question


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


def _print_table(rows: list[dict[str, Any]], title: str) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for number, name in enumerate(rows[0]):
        made.add_column(name.replace("_", " "), no_wrap=number == 0, style="bold" if number == 0 else None)
    for row in rows:
        made.add_row(*(escape(str(value)) for value in row.values()))
    Console().print(made)


if __name__ == "__main__":
    main()
