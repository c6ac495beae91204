"""The folder of a sweep: one file per cell, written whole or not at all, by one sweep at a time."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..results import write_json
from .cell import Cell

DONE, FAILED, REFUSED = "done", "failed", "refused"


class Store:
    """Results below ``out``: ``cells/<key>.json`` with status, cell, identity, and either result or error.

    Errors: ``ValueError`` when ``out`` is a file or holds something else than a sweep.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.cells = out, out / "cells"
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not self.cells.is_dir())):
            raise ValueError(f"out={str(out)!r} exists and is no folder of a sweep; choose a new or empty folder")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one sweep; a killed one holds nothing. Errors: ``ValueError`` when another is at work."""
        self.cells.mkdir(parents=True, exist_ok=True)
        with (self.cells / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"out={str(self.out)!r} is being written by another sweep; wait for it, or choose another folder"
                ) from None
            for leftover in self.cells.glob(".*.json.*"):  # of a sweep that was killed while writing
                leftover.unlink()
            yield

    def file(self, cell: Cell) -> Path:
        return self.cells / f"{cell.key}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What is known of a cell; None if nothing."""
        file = self.file(cell)
        return json.loads(file.read_text()) if file.is_file() else None

    def status(self, cell: Cell) -> str | None:
        found = self.read(cell)
        return None if found is None else found["status"]

    def write(self, cell: Cell, status: str, **content: Any) -> None:
        """Replace what is known of a cell; earlier errors are kept under ``attempts``. Errors: ``OSError``."""
        earlier = self.read(cell)
        attempts = [*earlier["attempts"], *([earlier["error"]] if "error" in earlier else [])] if earlier else []
        about = {"key": cell.key, "status": status, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_json(
            self.file(cell),
            {**about, "cell": cell.as_dict(), "identity": cell.identity(), "attempts": attempts, **content},
        )

    def everything(self) -> list[dict[str, Any]]:
        """All cells that are there, in a fixed order."""
        return [json.loads(file.read_text()) for file in sorted(self.cells.glob("*.json"))]
