"""The command line itself: the application that commands join, errors that teach, tables."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

# Nothing heavy is imported above: help appears at once. Commands import torch and transformers when they run.
FAILED, USAGE, INTERRUPTED = 1, 2, 130  # the last is what shells give for Ctrl-C
UNLIMITED = 100_000  # columns

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

- `tokenreduce inspect --model demo --method fastv --keep 0.25 --out page.html` : which tokens are left, to point at

- `tokenreduce sweep --model demo --task tr_demo_images --limit 60` : methods x budgets x tasks through lmms-eval

- `tokenreduce reproduce hiprune --tasks pope,gqa --limit 500` : a published table, repeated

- `tokenreduce methods` and `tokenreduce models` : what there is
""",
)


def teaching(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into one line on stderr: 2 for what the user can correct, 1 for a failed run; --debug raises them."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped")
            raise typer.Exit(INTERRUPTED) from None
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
    return str(frames[-1].get("__name__")).partition(".")[0] == "tokenreduce"


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


def print_table(rows: list[dict[str, Any]], title: str, console: Console | None = None) -> None:
    """Rows under their keys, and no word is ever cut: as wide as they are where no terminal sets the width; where a terminal is
    too narrow, one value a line.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=UNLIMITED)
    words = {
        name: max(len(word) for row in [{name: name}, *rows] for word in str(row[name]).split() or [""])
        for name in rows[0]
    }
    head = next(iter(rows[0]))
    words[head] = max(len(str(row[head])) for row in rows)
    if sum(words.values()) + 3 * len(words) > console.width:
        _print_records(rows, title, console)
        return
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for number, name in enumerate(rows[0]):
        style = "bold" if number == 0 else None
        made.add_column(
            name.replace("_", " "), no_wrap=number == 0, overflow="fold", style=style, min_width=words[name]
        )
    for row in rows:
        made.add_row(*(escape(str(value)) for value in row.values()))
    console.print(made, soft_wrap=False)


def _print_records(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(title, style="bold"), soft_wrap=False)
    for row in rows:
        (_, head), *rest = row.items()
        console.print(Text(str(head), style="bold"), soft_wrap=False)
        for name, value in rest:
            said = f"{name.replace('_', ' ')}: {str(value).replace(chr(10), ', ')}"
            console.print(Padding(Text(said), (0, 0, 0, 2)), soft_wrap=False)
