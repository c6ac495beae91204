"""Files that are there whole or not at all, and never over something that was there before, unless asked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def writing(path: str | Path, suffixes: tuple[str, ...], overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write into, which becomes ``path`` when the block ends well; readers never see a part.

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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
