"""Versions of the libraries we reach into: installed, and between which this release was tested."""

from __future__ import annotations

import json
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

from tokenreduce.tables import Table


@cache
def tested() -> dict[str, dict[str, str]]:
    """Per library the ``oldest`` and the ``newest`` version that this release was tested with (``tested.json``)."""
    return json.loads(files("tokenreduce").joinpath("tested.json").read_text())


def versions() -> Table:
    """One row per library: its version here, and the oldest and the newest tested."""
    return Table(
        {
            "library": name,
            "installed": installed(name) or "-",
            "oldest_tested": own["oldest"],
            "newest_tested": own["newest"],
        }
        for name, own in tested().items()
    )


def installed(library: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def newer_than_tested() -> list[str]:
    """Libraries, with their versions, that are newer here than the newest tested."""
    found = []
    for name, own in tested().items():
        here = installed(name)
        if here is not None and _numbers(here) > _numbers(own["newest"]):
            found.append(f"{name} {here} (newest tested: {own['newest']})")
    return found


@cache
def warn_of_untested() -> None:
    """Warn, once in a process, when a library is newer than any this release was tested with."""
    if found := newer_than_tested():
        warnings.warn(
            f"{', '.join(found)}: newer than this release of tokenreduce was tested with; `tokenreduce doctor` finds out in a "
            "minute which families work",
            stacklevel=3,
        )


def _numbers(written: str) -> tuple[int, ...]:
    from packaging.version import Version

    return Version(written).release
