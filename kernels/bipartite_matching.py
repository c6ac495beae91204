"""Bipartite matching: for every row of one set the most similar row of another, without the table of all pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels import dispatch

CHUNK = 1024
EPSILON = 1e-12
STRIP = 16  # columns


def bipartite_matching(source: Tensor, destination: Tensor, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """The highest cosine of each source row with any destination row, and which destination that is.

    Rows are normalised (norms below 1e-12 count as 1e-12, so a zero row has cosine 0 with everything), multiplied and
    compared in float32 whatever their dtype, also under autocast: in half precision cosines tie in masses. Loops over
    blocks of ``chunk`` x ``chunk`` pairs and keeps a running maximum. Not differentiable.

    Args:
        source: (B, A, C), any float dtype.
        destination: (B, M, C), M >= 1.
        chunk: rows of either set per block.

    Returns:
        best (B, A) float32 in [-1, 1] up to rounding, and partner (B, A) long, a row of ``destination``. Of equal
        cosines the lowest index wins.

    Errors: ``ValueError`` when there is no destination row.
    """
    batch, rows, _ = source.shape
    columns = destination.shape[1]
    if columns < 1:
        raise ValueError(f"destination has shape {tuple(destination.shape)}; allowed: (B, M, C) with M >= 1")
    fast = dispatch.kernel("bipartite_matching", source, destination, limit=dispatch.one_dtype(source, destination))
    if fast is not None:
        return fast.bipartite_matching(source, destination)
    with torch.autocast(source.device.type, enabled=False):
        a, b = unit_rows(source), unit_rows(destination)
        best = a.new_empty(batch, rows)
        partner = torch.empty(batch, rows, dtype=torch.long, device=a.device)
        for top in range(0, rows, chunk):
            here = slice(top, top + chunk)
            for left in range(0, columns, chunk):
                value, index = first_maximum(a[:, here] @ b[:, left : left + chunk].mT)
                if left:
                    # strictly greater: of equal cosines the earlier block keeps its place
                    better = value > best[:, here]
                    value = torch.where(better, value, best[:, here])
                    index = torch.where(better, index + left, partner[:, here])
                best[:, here], partner[:, here] = value, index
    return best, partner


def first_maximum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and its first column in each row of ``x`` (..., M), as ``x.max(dim=-1)``.

    On a CPU a maximum with its index costs ten times one without: whole strips first, the index within one strip only.
    """
    if x.device.type != "cpu" or x.shape[-1] % STRIP:
        value, index = x.max(dim=-1)
        return value, index
    strips = x.unflatten(-1, (-1, STRIP))
    value, strip = strips.amax(dim=-1).max(dim=-1)
    inside = strips.gather(-2, strip[..., None, None].expand(*strip.shape, 1, STRIP)).squeeze(-2)
    return value, inside.argmax(dim=-1) + strip * STRIP


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` (B, N, C) at length 1, in float32 and without a graph; rows shorter than 1e-12 are divided by that."""
    return F.normalize(x.detach().float(), dim=-1, eps=EPSILON)
