"""What is said when a library is not as this toolkit knows it."""

from __future__ import annotations

import traceback
from importlib.metadata import PackageNotFoundError, packages_distributions, version


class UpstreamChanged(RuntimeError):
    """A library we reach into has changed where we hold on to it, so that results could be silently wrong."""


def installed(package: str) -> str:
    """The installed version of ``package``, or ``not installed``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def seam_changed(package: str, seam: str, known: str, found: str) -> UpstreamChanged:
    """The error for ``seam`` of ``package``, which was ``known`` to be otherwise than ``found``."""
    return UpstreamChanged(
        f"{package} {installed(package)} does not fit this release of tokenreduce: {seam} was expected to be {known}; "
        f"found: {found}. Nothing was reduced, since the answer could be wrong without a word. Install a version that "
        "was tested (`tokenreduce doctor` lists them and tells what works here), or a newer tokenreduce."
    )


def misfit(error: ImportError) -> str:
    """Which two packages do not fit, for an import that failed: who imports, what is not there, what to do."""
    importers = [
        str(frame.f_globals.get("__name__"))
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if "importlib" not in frame.f_code.co_filename
    ]
    by = _package(importers[-1] if importers else "tokenreduce")
    missing = _package(error.name or "a module")
    reason = f"{type(error).__name__}: {error}"
    if installed(missing) == "not installed":
        return f"{by} {installed(by)} imports {missing}, which is not installed ({reason}). Run: pip install {missing}."
    return (
        f"{by} {installed(by)} does not fit {missing} {installed(missing)} ({reason}). Install versions that were tested "
        "together; `tokenreduce doctor` lists them."
    )


def _package(module: str) -> str:
    """The name under which the package of ``module`` is installed."""
    top = module.partition(".")[0]
    return next(iter(packages_distributions().get(top, ())), top)
