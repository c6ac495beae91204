"""Published figures as data, the sweep that repeats them, and a page of both side by side.

>>> from tokenreduce.eval import reproduce
>>> table = reproduce.Published.read("hiprune")
>>> table.model, table.figures[128]
('llava-hf/llava-1.5-7b-hf', (57.3, 56.2, 82.8))
"""

from __future__ import annotations

from .comparison import Line, compare, environment, page
from .published import Column, Published, tables

__all__ = ["Column", "Line", "Published", "compare", "environment", "page", "tables"]
