"""What of a picture its neighbours predict: units of pixels scanned in raster order, each held against what came before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["max", "mae", "rmse"]
Scan = Literal["pred_2d", "raster", "serpentine"]
#: of units (..., D) and (..., D): (...)
Distance = Callable[[Tensor, Tensor], Tensor]


def distance(metric: Metric) -> Distance:
    """The largest, the mean, or the root mean square difference of two units; NaN is as far as can be."""
    of = {
        "max": lambda d: d.abs().amax(dim=-1),
        "mae": lambda d: d.abs().mean(dim=-1),
        "rmse": lambda d: d.square().mean(dim=-1).sqrt(),
    }[metric]
    return lambda a, b: of(a - b).nan_to_num(nan=torch.inf)


def from_neighbours(x: Tensor, far: Distance, tau: float) -> Tensor:
    """How far each unit of ``x`` (B, T, h, w, D) is from what its left and upper neighbours predict, as they are: (B, T, h, w).

    The prediction is the unit above where the corner between equals the left one and not the upper one, by ``tau``: an edge
    runs down there. Else it is the unit to the left. Every frame begins with a unit that nothing predicts: infinity. From the
    second frame on, the same place in the frame before predicts, too.
    """
    down, across = far(x[:, :, 1:], x[:, :, :-1]), far(x[:, :, :, 1:], x[:, :, :, :-1])
    found = x.new_full(x.shape[:-1], torch.inf)
    found[:, :, 0, 1:] = across[:, :, 0]
    found[:, :, 1:, 0] = down[:, :, :, 0]
    edge = (down[..., :-1] <= tau) & ~(across[:, :, :-1] <= tau)
    found[:, :, 1:, 1:] = torch.where(edge, down[..., 1:], across[:, :, 1:])
    if x.shape[1] > 1:
        found[:, 1:] = torch.minimum(found[:, 1:], far(x[:, 1:], x[:, :-1]))
    return found


def from_reconstruction(x: Tensor, far: Distance, tau: float) -> Tensor:
    """The same with what a decoder knows of the neighbours: units within ``tau`` of their prediction are taken for it.

    One step for each anti-diagonal of a frame, whose units do not depend on one another.
    """
    known, found = x.clone(), x.new_full(x.shape[:-1], torch.inf)
    frames, height, width = x.shape[1:4]
    for t in range(frames):
        for s in range(height + width - 1):
            r = torch.arange(max(0, s - width + 1), min(height - 1, s) + 1, device=x.device)
            c = s - r
            own, now = x[:, t, r, c], known[:, t]
            predicted = torch.full_like(own, torch.nan)  # nothing is within any distance of it
            if s:
                left, above = now[:, r, (c - 1).clamp_min(0)], now[:, (r - 1).clamp_min(0), c]
                corner = now[:, (r - 1).clamp_min(0), (c - 1).clamp_min(0)]
                edge = (far(corner, left) <= tau) & ~(far(corner, above) <= tau)
                up = (edge | (c == 0)) & (r > 0)
                predicted = torch.where(up[..., None], above, left)
            away = far(own, predicted)
            if t:
                before = known[:, t - 1, r, c]
                away, predicted = _nearer(away, predicted, far(own, before), before)
            found[:, t, r, c] = away
            known[:, t, r, c] = torch.where((away <= tau)[..., None], predicted, own)
    return found


def _nearer(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller of two distances (B, n), and the unit (B, n, D) it belongs to; the first of equal ones."""
    return torch.minimum(a, b), torch.where((b < a)[..., None], y, x)


def from_last_kept(x: Tensor, far: Distance, tau: float, serpentine: bool) -> Tensor:
    """How far each unit is from the last one kept before it, along the rows of a frame, every other one backwards if
    ``serpentine``; each frame for itself. One step for each unit of a frame."""
    if serpentine:
        x = torch.cat([x[:, :, i : i + 1].flip(3) if i % 2 else x[:, :, i : i + 1] for i in range(x.shape[2])], dim=2)
    rows = x.flatten(2, 3)
    found, last = x.new_full(rows.shape[:-1], torch.inf), rows[:, :, 0]
    for n in range(1, rows.shape[2]):
        found[:, :, n] = far(rows[:, :, n], last)
        last = torch.where((found[:, :, n] <= tau)[..., None], last, rows[:, :, n])
    found = found.view(x.shape[:-1])
    if serpentine:
        found = torch.cat(
            [found[:, :, i : i + 1].flip(3) if i % 2 else found[:, :, i : i + 1] for i in range(x.shape[2])], 2
        )
    return found
