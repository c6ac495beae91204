"""Finds a method and a budget for a wish: so much of the accuracy, or so much of the FLOPs."""

from __future__ import annotations

from .calibrate import Calibration
from .choice import Choice, Point, Wish
from .search import search

__all__ = ["Calibration", "Choice", "Point", "Wish", "search"]
