"""Finds a method and a budget for a wish: so much of the accuracy, or so much of the FLOPs."""

from __future__ import annotations

from .calibrate import Calibration
from .search import Choice, Point, search

__all__ = ["Calibration", "Choice", "Point", "search"]
