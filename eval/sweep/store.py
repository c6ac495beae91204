"""The folder of a sweep: one file per cell, written whole or not at all, by one sweep at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..results import write_json
from .cell import Cell

DONE, FAILED, REFUSED = "done", "failed", "refused"


class _FolderLock(FileLock):
    """A class of our own: lmms-eval changes what a call of ``FileLock`` gives, one lock that may be entered twice."""


class Store:
    """Results below ``out``: ``cells/<key>.json`` with status, cell, identity, and either result or error.

    ``broken``: files that hold no cell, by path with the reason, as far as they were met. They count as not done; the cell
    that is written in their place moves them into ``cells/broken``.

    Errors: ``ValueError`` when ``out`` is a file or holds something else than a sweep.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.cells = out, out / "cells"
        self.broken: dict[Path, str] = {}
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not self.cells.is_dir())):
            raise ValueError(f"out={str(out)!r} exists and is no folder of a sweep; choose a new or empty folder")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one sweep; a killed one holds nothing. Errors: ``ValueError`` when another is at work."""
        self.cells.mkdir(parents=True, exist_ok=True)
        try:
            with _FolderLock(self.cells / ".lock", timeout=0):
                for leftover in self.cells.glob(".*.json.*"):  # of a sweep that was killed while writing
                    leftover.unlink()
                yield
        except Timeout:
            raise ValueError(
                f"out={str(self.out)!r} is being written by another sweep; wait for it, or choose another folder"
            ) from None

    def file(self, cell: Cell) -> Path:
        return self.cells / f"{cell.key}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What is known of a cell; None if nothing."""
        file = self.file(cell)
        return self._load(file) if file.is_file() else None

    def status(self, cell: Cell) -> str | None:
        found = self.read(cell)
        return None if found is None else found["status"]

    def write(self, cell: Cell, status: str, **content: Any) -> None:
        """Replace what is known of a cell; earlier errors are kept under ``attempts``. Errors: ``OSError``."""
        file, earlier = self.file(cell), self.read(cell)
        if earlier is None and file.exists():
            self._put_aside(file)
        attempts = [*earlier["attempts"], *([earlier["error"]] if "error" in earlier else [])] if earlier else []
        about = {"key": cell.key, "status": status, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_json(
            file, {**about, "cell": cell.as_dict(), "identity": cell.identity(), "attempts": attempts, **content}
        )

    def everything(self) -> list[dict[str, Any]]:
        """All cells that are there, in a fixed order."""
        found = (self._load(file) for file in sorted(self.cells.glob("*.json")))
        return [cell for cell in found if cell is not None]

    def find_broken(self) -> dict[Path, str]:
        """All files that hold no cell, and why."""
        self.everything()
        return self.broken

    def _load(self, file: Path) -> dict[str, Any] | None:
        """The cell in ``file``; None where it is ``broken``."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            reason = _fault(found, file.stem)
        except ValueError as error:  # no JSON, or no text
            reason = f"{type(error).__name__}: {error}"
        if reason is None:
            return dict(found)
        self.broken[file] = reason
        return None

    def _put_aside(self, file: Path) -> None:
        aside = self.cells / "broken"
        aside.mkdir(exist_ok=True)
        free = (aside / f"{file.stem}{f'-{n}' if n else ''}.json" for n in range(1000))
        file.rename(next(path for path in free if not path.exists()))


def _fault(found: Any, key: str) -> str | None:
    """Why ``found`` is not the cell that a sweep wrote under ``key``; None if it is."""
    if not isinstance(found, dict) or not isinstance(found.get("cell"), dict):
        return "it holds no cell of a sweep"
    if found.get("key") != key:
        return f"it holds the cell {found.get('key')!r}"
    outcome = {DONE: "result", FAILED: "error", REFUSED: "error"}.get(found.get("status", ""))
    if outcome is None:
        return f"its status is {found.get('status')!r}"
    missing = [
        name
        for name, kind in (("identity", dict), ("attempts", list), (outcome, dict))
        if not isinstance(found.get(name), kind)
    ]
    return f"it has no {missing[0]}" if missing else None
