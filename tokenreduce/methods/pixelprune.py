"""PixelPrune: what the picture itself predicts is never encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.novelty import newer, on_grid, unit_values
from tokenreduce.predictive_coding import (
    Scan,
    distance,
    from_last_kept,
    from_neighbours,
    from_reconstruction,
)
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range, whole


@dataclass(frozen=True, kw_only=True)
class PixelPrune(Method):
    """Scan the units of a picture from its upper left corner, and drop each that is within ``threshold`` of what the units
    scanned before predict there: the one to the left, or, where an edge runs down, the one above.

    Attributes:
        keep: ``auto``, as many as are not predicted; with bounds ``auto:16-0.5``. A fraction or a count: the units that are
            farthest from their prediction, whatever the threshold.
        threshold: tau, differences of pixel values between 0 and 1 that count as none; 0 takes only equal units for equal.
        metric: of two units, the largest difference ``max``, the mean ``mae``, or ``rmse``; ``exact`` is ``max`` with tau 0.
        anchored: predict from what is kept and what that predicts, so that small differences do not add up; False: from the
            neighbours as they are. The same with tau 0.
        scan: ``pred_2d``, the paper's; or along the rows, against the last unit kept: ``raster``, ``serpentine``.
        tower_layer: the first block of the vision tower that runs without the dropped units; 0 is before all of them.

    Source: "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding", arXiv 2604.00886.
    Departures from the release: any batch; floor, ceiling and fixed budgets; from the second frame of a video on, the same
        place in the frame before predicts, too.
    """

    name = "pixelprune"
    title = "what the picture itself predicts"
    paper = "arXiv 2604.00886"
    stages = ("pixels",)
    looks_at = "pixels"
    adapts = True

    keep: float | int | str = "auto"
    threshold: float = 0.0
    metric: Literal["max", "mae", "rmse", "exact"] = "max"
    anchored: bool = True
    scan: Scan = "pred_2d"
    tower_layer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("threshold", self.threshold, 0, 1)
        choice("metric", self.metric, ("max", "mae", "rmse", "exact"))
        choice("scan", self.scan, ("pred_2d", "raster", "serpentine"))
        whole("tower_layer", self.tower_layer, 0, ", a block of the vision tower. The paper uses 0.")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("pixels", layer=self.tower_layer or None, amount=facts.pixel_unit),)

    @property
    def tau(self) -> float:
        return 0.0 if self.metric == "exact" else self.threshold

    def reduce(self, tokens: VisualTokens) -> Reduction:
        values = tokens.features
        if tokens.layout.medium == "image" and tokens.amount is not None:
            values = unit_values(tokens)[:, :, :, :, 0].flatten(2)  # all frames of a still image are the same
        grid, cells = on_grid(values, tokens.layout, tokens.source)
        novelty = self.novelty(grid).flatten(1).gather(1, cells)
        return newer(novelty, self.tau, self.budget, self.positions)

    def novelty(self, grid: Tensor) -> Tensor:
        """(B, T, h, w) how far each unit of ``grid`` (B, T, h, w, D) is from its prediction."""
        far = distance("max" if self.metric == "exact" else self.metric)
        if self.scan != "pred_2d":
            return from_last_kept(grid, far, self.tau, self.scan == "serpentine")
        if self.anchored and self.tau > 0:
            return from_reconstruction(grid, far, self.tau)
        return from_neighbours(grid, far, self.tau)
