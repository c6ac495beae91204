"""Files that are there whole or not at all, and never over something that was there before, unless asked."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def cache_folder() -> Path:
    """``tokenreduce`` in the user's cache: below ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenreduce"


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write into, which becomes ``path`` when the block ends well; readers see the old file or the new one.

    A link stays a link and its target is replaced; a pipe, a terminal or another device is written to as it is. A file that
    is replaced keeps its permissions, a new one gets those that the process gives to new files.

    Errors: ``OSError``; then ``path`` is as it was.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    target = path.resolve()
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            yield file
        if target.exists():
            shutil.copymode(target, unfinished)
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def why_not_writable(path: str | Path) -> str | None:
    """Why a file cannot be made or replaced at ``path``, found out by making one beside it; None where it can."""
    path = Path(path)
    if path.is_dir():
        return "it is a folder"
    folder = path.resolve().parent
    if not folder.is_dir():
        return f"the folder {str(path.parent)!r} does not exist; make it first"
    if path.exists() and not os.access(path, os.W_OK):
        return "its permissions forbid it"
    if path.exists() and not path.is_file():
        return None
    probe = folder / f".{path.name}.{secrets.token_hex(4)}"
    try:
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        return f"no file can be made in {str(path.parent)!r} ({error.strerror})"
    return None


@contextmanager
def writing(path: str | Path, suffixes: tuple[str, ...], overwrite: bool = False) -> Iterator[BinaryIO]:
    """``replacing``, for a file of a given type that is not there yet, or may be overwritten.

    Errors: ``ValueError`` where the name has none of ``suffixes`` or its folder is missing, ``FileExistsError`` where the
        file exists and ``overwrite`` is False.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes or not path.parent.is_dir():
        raise ValueError(
            f"path={str(path)!r}; allowed: a file name ending in {' or '.join(suffixes)} in a folder that exists"
        )
    if path.exists() and not overwrite:
        raise FileExistsError(f"path={str(path)!r} exists; choose another name, or pass overwrite=True to replace it")
    with replacing(path) as file:
        yield file
