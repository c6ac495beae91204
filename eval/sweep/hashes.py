"""Hashes of what a result depends on: files, folders, the toolkit's own sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tokenreduce

# what shows results but does not make them
WITHOUT_EFFECT = ("cli", "draw", "eval/bench", "eval/report", "eval/tune")
SOURCES = (".py", ".yaml")


@cache
def file_hash(file: Path) -> str:
    """SHA-256 of a file; read off its name where it lies in the cache of the Hugging Face hub, which is addressed so."""
    resolved = file.resolve()
    if resolved.parent.name == "blobs" and len(resolved.name) == 64:
        return resolved.name
    with resolved.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def combined(hashes: Mapping[str, Any]) -> str:
    """One hash for many, which may be nested."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def folder_hashes(folder: Path) -> dict[str, str]:
    """The hash of every file below ``folder`` by its path from there; neither hidden files nor what Python compiled."""
    found = {}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in path.parts):
            found[path.as_posix()] = file_hash(file)
    return found


@cache
def source_hash() -> str:
    """One hash for the sources of the toolkit that make results; an editable checkout changes under one version."""
    found: dict[str, str] = {}
    rooms = {"": Path(tokenreduce.__file__).parent}
    for room in ("adapters", "kernels", "eval"):
        module = __import__(f"tokenreduce.{room}", fromlist=["__path__"])
        rooms[f"{room}/"] = Path(next(iter(module.__path__)))
    for prefix, folder in rooms.items():
        for path in sorted(folder.rglob("*")):
            name = prefix + path.relative_to(folder).as_posix()
            if path.suffix in SOURCES and not name.startswith(tuple(f"{part}/" for part in WITHOUT_EFFECT)):
                found[name] = file_hash(path)
    return combined(found)
