"""What a sweep found: a table with intervals, and one page to look at, which needs no network."""

from __future__ import annotations

from .comparison import compared
from .files import FORMATS, write
from .rows import Row, rows

__all__ = ["FORMATS", "Row", "compared", "rows", "write"]
