"""The pytest option ``--golden-dir``, known to pytest before it looks for its configuration.

An option defined in a conftest is not: pytest would then take ``DIR`` for a place to look for tests, and its parent for the
root of the project. Installed as an entry point (``pytest11`` in setup.cfg); imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pytest_addoption(parser: Any) -> None:
    parser.addoption(
        "--golden-dir",
        metavar="DIR",
        type=lambda text: Path(text).resolve(),
        default=None,
        help="tokenreduce: folder of golden vectors, DIR/<method>/<case>.npz (default: tests/golden)",
    )
