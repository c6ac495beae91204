"""What a sweep found: a table with intervals, and one page to look at, which needs no network."""

from __future__ import annotations

from .files import FORMATS, write
from .table import Row, rows

__all__ = ["FORMATS", "Row", "rows", "write"]
