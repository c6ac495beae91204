"""Position ids of three axes: survivors keep theirs, and text goes on behind the whole picture, as in transformers.

What is left of a picture is known once its tower has run, so its ids travel behind the embeddings, and the runner hands both to
``recompute_mrope_positions``. An id is two channels, so that half precision holds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

BASE = 128  # 128 * 256 ids: integers up to 256 are exact in bfloat16
CHANNELS = 6


def grid_ids(frames: int, height: int, width: int, step: float = 1.0) -> Tensor:
    """(3, N) long: time, row and column of every token, counted from the picture's first; time in steps of ``step`` ids."""
    time = (torch.arange(frames) * step).long()
    return torch.stack(
        [x.flatten() for x in torch.meshgrid(time, torch.arange(height), torch.arange(width), indexing="ij")]
    )


def with_ids(rows: Tensor, ids: Tensor) -> Tensor:
    """``rows`` (K, C) with their ids (3, K) in ``CHANNELS`` more channels."""
    ids = ids.to(rows.device, non_blocking=True).T
    return torch.cat([rows, (ids // BASE).to(rows.dtype), (ids % BASE).to(rows.dtype)], dim=1)


def parted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What ``with_ids`` joined."""
    high, low = rows[:, -CHANNELS:].long().T.chunk(2)
    return rows[:, :-CHANNELS], high * BASE + low


def laid_out(length: int, pictures: Iterable[tuple[int, int, Tensor]]) -> Tensor:
    """(3, length) ids of a prompt. ``pictures``: column and number of the placeholders of each, in order, and the ids (3, N) of
    its tokens, all of them. Placeholders get ids of the last tokens until it is known which are left.
    """
    parts, column, following = [], 0, 0
    for offset, left, ids in pictures:
        text = offset - column
        parts += [torch.arange(following, following + text).expand(3, -1), ids[:, -left:] + following + text]
        following += text + int(ids.max()) + 1
        column = offset + left
    return torch.cat([*parts, torch.arange(following, following + length - column).expand(3, -1)], dim=1)


def settled(
    positions: Tensor, media: Tensor, computed: int, embeddings: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The ``embeddings`` (K, C) without their ids, and ``positions`` (3, L) with these.

    Args:
        media: (L,) bool, the placeholders of a prompt; pictures are parted by text.
        computed: columns of the prompt that were run before.
        embeddings: with ids, those of the placeholders that are run now, from there on.
    """
    if not len(embeddings):
        return [], positions
    found = [parted(own) for own in embeddings]
    ids = torch.cat([own for _, own in found], dim=1).to(positions.device)
    columns = torch.arange(len(media), device=media.device)
    rank = media.cumsum(dim=0) - 1 - media[:computed].sum()
    before = torch.where(media, -1, columns).cummax(dim=0).values  # the text in front of each picture
    start = torch.where(before < 0, 0, positions[0, before.clamp_min(0)] + 1)
    now = media & (rank >= 0) & (rank < ids.shape[1])
    own = ids[:, rank.clamp(0, ids.shape[1] - 1)] + start
    return [rows for rows, _ in found], torch.where(now, own, positions)
