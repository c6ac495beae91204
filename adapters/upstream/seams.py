"""What is said when a library is not as this toolkit knows it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


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
