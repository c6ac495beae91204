"""Bipartite matching: for every row of one set the most similar row of another, without the table of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import row_blocks, unit_rows
from tokenreduce.kernels.shapes import fits

ELSEWHERE = 4.0  # taken from the cosine with a row of another group: more than cosines differ by


@dispatch.operation
def bipartite_matching(
    source: Tensor, destination: Tensor, *, chunk: int | None = None, groups: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The highest cosine of each source row with any destination row, and which destination that is.

    Rows are normalised (norms below 1e-12 count as 1e-12, so a zero row has cosine 0 with everything), multiplied and
    compared in float32 whatever their dtype, also under autocast: in half precision cosines tie in masses. Loops over
    images and blocks of source rows; memory is O(chunk * M). Not differentiable.

    Args:
        source: (B, A, C), any float dtype.
        destination: (B, M, C), M >= 1.
        chunk: source rows per block; None: as many as stay in the cache.
        groups: (B, A) and (B, M) long: a destination of a row's own group comes before all others. Always the reference.

    Returns:
        best (B, A) float32 in [-1, 1] up to rounding, and partner (B, A) long, a row of ``destination``. Of equal
        cosines the lowest index wins. The cosine with a row of another group counts 4 less.

    Errors: ``ValueError`` when there is no destination row, or the two differ in batch or channels.
    """
    batch, rows, channels = source.shape
    columns = destination.shape[1]
    fits("bipartite_matching", "destination", destination, batch, columns, channels)
    if columns < 1:
        raise ValueError(f"destination has shape {tuple(destination.shape)}; allowed: (B, M, C) with M >= 1")
    if groups is None:
        fast = dispatch.kernel("bipartite_matching", source, destination, limit=dispatch.one_dtype(source, destination))
        if fast is not None:
            return fast.bipartite_matching(source, destination)
    a, b = unit_rows(source), unit_rows(destination)
    blocks = list(row_blocks(rows, columns, chunk))
    if batch == len(blocks) == 1 and groups is None:
        best, partner = (a[0] @ b[0].mT).max(dim=-1)
        return best[None], partner[None]
    best = a.new_empty(batch, rows)
    partner = torch.empty(batch, rows, dtype=torch.long, device=a.device)
    for image in range(batch):
        columns_of_image = b[image].mT
        for here in blocks:
            cosine = a[image, here] @ columns_of_image
            if groups is not None:
                own, other = groups
                cosine = cosine - ELSEWHERE * (own[image, here, None] != other[image])
            best[image, here], partner[image, here] = cosine.max(dim=-1)
    return best, partner
