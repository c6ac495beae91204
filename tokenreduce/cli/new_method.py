"""``tokenreduce new-method``."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, teaching

TEMPLATES = Path(__file__).parent / "templates"


@app.command("new-method")
@teaching
def new_method(
    name: Annotated[str, typer.Argument(help="Name of the method, such as text_sim.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write into; made where it is not there.")] = Path(),
    debug: Debug = False,
) -> None:
    """Write a method of your own that runs as it is, with its test and its page; replaces no file.

    **Examples**

    - `tokenreduce new-method text_sim` , then `tokenreduce check-method ./text_sim.py:TextSim`

    - `tokenreduce run --model demo --method ./text_sim.py:TextSim --keep 0.25 --draw kept.png`
    """
    from tokenreduce.registry import catalogue

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(
            f"name={name!r}; allowed: small letters, digits and underscores, a letter first, such as text_sim; its class is "
            "named after it"
        )
    if name in catalogue():
        raise ValueError(
            f"name={name!r} is taken by a method that is there already; give it another, such as my_{name}"
        )
    words = {"name": name, "cls": "".join(part.title() for part in name.split("_")), "title": name.replace("_", " ")}
    files = {
        out / f"{name}.py": "method.py.txt",
        out / f"test_{name}.py": "test.py.txt",
        out / f"{name}.md": "page.md.txt",
    }
    there = [str(file) for file in files if file.exists()]
    if there:
        raise ValueError(f"{', '.join(there)} exists already and is not replaced; move it, or pass --out FOLDER")
    out.mkdir(parents=True, exist_ok=True)
    for file, template in files.items():
        file.write_text(
            Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(words), encoding="utf-8"
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"wrote {', '.join(map(str, files))}", markup=False)
    console.print(f"next: tokenreduce check-method {_from_here(out)}/{name}.py:{words['cls']} --keep 0.5", markup=False)


def _from_here(folder: Path) -> str:
    return str(folder) if folder.is_absolute() or folder == Path() else f"./{folder}"
