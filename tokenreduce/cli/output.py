"""``--json PATH``: where a command writes its numbers, looked at before anything runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tokenreduce.files import why_not_writable

STANDARD_OUTPUT = Path("-")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Write the numbers here, - for standard output; replaces its own file only."),
]
Force = Annotated[bool, typer.Option("--force", help="Let --json replace a file that this command did not write.")]


class JsonOutput:
    """Where the JSON of ``command`` goes: nowhere, standard output, a pipe or another special file, a file of its own.

    ``console`` is for people: standard output, or standard error where the JSON has that.

    Errors: ``ValueError`` where ``path`` cannot be written, has another ending than .json, or holds what ``command`` did not
        write, unless ``force``.
    """

    def __init__(self, command: str, path: Path | None, force: bool = False) -> None:
        self.kind, self.path = f"tokenreduce {command}", path
        if path is not None and (path == STANDARD_OUTPUT or _is_standard_output(path)):
            self.path = STANDARD_OUTPUT
        elif path is not None:
            self._check(path, force)
        self.console = Console(stderr=self.path == STANDARD_OUTPUT, soft_wrap=True, highlight=False)

    def _check(self, path: Path, force: bool) -> None:
        reason = why_not_writable(path)
        if reason is not None:
            raise ValueError(f"--json={str(path)!r}: {reason}")
        if path.exists() and not path.is_file():
            return
        if path.suffix.lower() != ".json":
            raise ValueError(f"--json={str(path)!r}; allowed: a name ending in .json, a pipe, or - for standard output")
        if path.exists() and path.stat().st_size and not force and not self._is_own(path):
            raise ValueError(
                f"--json={str(path)!r} exists and {self.kind!r} did not write it; choose another name, or pass --force "
                "to replace it"
            )

    def _is_own(self, path: Path) -> bool:
        try:
            return bool(json.loads(path.read_text(encoding="utf-8"))["kind"] == self.kind)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write(self, content: dict[str, Any]) -> None:
        """``content``, with the name of the command, and a word to people where it went. Errors: ``OSError``."""
        from tokenreduce.eval.results import as_json, write_json

        made = {"kind": self.kind, **content}
        if self.path == STANDARD_OUTPUT:
            sys.stdout.write(as_json(made))
        elif self.path is not None:
            write_json(self.path, made)
            self.console.print(f"wrote {self.path}", markup=False)


def check_picture(path: Path, option: str = "--draw") -> None:
    """Raise ``ValueError`` where ``option`` cannot write a picture to ``path``."""
    reason = why_not_writable(path)
    if reason is not None:
        raise ValueError(f"{option}={str(path)!r}: {reason}")
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"{option}={str(path)!r}; allowed: a name ending in {', '.join(PICTURES)}")


def _is_standard_output(path: Path) -> bool:
    """Whether ``path``, such as /dev/stdout, is another name of standard output."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False
