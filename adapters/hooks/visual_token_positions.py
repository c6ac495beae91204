"""Which columns of a prompt hold the tokens of which encoded picture, and which pictures belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.adapters.visual_inputs import Picture, Placed
from tokenreduce.groups import Image
from tokenreduce.layout import Layout


def place(visual: Tensor, video: Tensor, pictures: Sequence[Picture], repeat: int) -> list[Placed]:
    """Find ``pictures`` in a prompt, in the order of the call.

    Args:
        visual: (B, L) bool on the CPU, columns of placeholders; ``video``, those of videos.
        pictures: in the order of encoding; every ``repeat`` rows of the prompt share the pictures of a sample.

    Errors: ``ValueError`` when placeholders and pictures do not fit.
    """
    wanted = int((visual & ~video).sum()) // repeat
    queues: dict[bool, list[int]] = {False: [], True: []}
    for i, picture in enumerate(pictures):
        is_video = picture.medium == "video" if picture.medium else wanted <= 0
        queues[is_video].append(i)
        wanted -= 0 if is_video else picture.columns
    found: list[Placed] = []
    order: list[tuple[int, int]] = []
    for is_video, queue in queues.items():
        columns_of = [row.nonzero().flatten() for row in visual & (video if is_video else ~video)]
        shared: list[int] = []
        for sample, columns in enumerate(columns_of):
            if sample % repeat == 0:
                shared, left = [], len(columns)
                while left > 0 and queue:
                    shared.append(queue.pop(0))
                    left -= pictures[shared[-1]].columns
            if len(columns) != sum(pictures[i].columns for i in shared):
                sizes = sorted({pictures[i].columns for i in shared}) or [0]
                raise ValueError(
                    f"sample {sample} has {len(columns)} image placeholder tokens in this forward pass, not a multiple "
                    f"of the {', '.join(map(str, sizes))} of one image. An image must reach the language model in one "
                    "piece: prepare inputs with the model's own processor, and do not set prefill_chunk_size so that it "
                    "cuts an image."
                )
            for i, run in zip(shared, columns.split([pictures[i].columns for i in shared])):
                held = pictures[i].tokens
                layout = pictures[i].layout
                layout = replace(layout, medium="video" if is_video else layout.medium)
                found.append(Placed(Image(sample, run if held is None else run[list(held)], layout), (i,)))
                order.append((sample, int(run[0])))
    return [found[i] for i in sorted(range(len(found)), key=order.__getitem__)]


class Share(NamedTuple):
    """The pictures ``start`` to ``stop`` - 1 stand in a prompt, each in ``repeat`` of its rows."""

    start: int
    stop: int
    repeat: int = 1


def share_of(visual: int, pictures: Sequence[Picture], seen: int, batch: int) -> Share | None:
    """Which of the ``pictures`` encoded for it stand in a prompt of ``batch`` rows with ``visual`` placeholders.

    All of them; beam search and several return sequences repeat features after encoding. Or, where a prompt comes in
    chunks, those that follow the ``seen`` ones, in order. None: nothing explains it, or in a batch several things could.
    """
    whole = sum(picture.columns for picture in pictures)
    if seen == 0 and whole and visual % whole == 0:
        return Share(0, len(pictures), visual // whole)
    if batch > 1:
        return None
    left = visual
    for i, picture in enumerate(pictures[seen:], seen):
        left -= picture.columns
        if left <= 0:
            return Share(seen, i + 1) if left == 0 else None
    return None


def as_tiles(placed: list[Placed]) -> list[Placed]:
    """Pictures whose tokens follow one another without a gap become the views of an image, or the frames of a video."""
    joined: list[list[Placed]] = []
    for item in placed:
        before = joined[-1][-1].image if joined else None
        here = item.image
        if before is not None and before.sample == here.sample and int(before.columns[-1]) + 1 == int(here.columns[0]):
            joined[-1].append(item)
        else:
            joined.append([item])
    layouts = {"image": tiled, "video": _filmed}
    return [_as_one(run, layouts[run[0].image.layout.medium]) if len(run) > 1 else run[0] for run in joined]


def as_videos(placed: list[Placed]) -> list[Placed]:
    """The images of each sample as frames of one video."""
    videos = []
    for sample, run in groupby(placed, key=lambda item: item.image.sample):
        frames = list(run)
        first = frames[0].image.layout
        if any(frame.image.layout != first for frame in frames) or first.views or first.frames > 1:
            raise ValueError(
                f"images_as_video=True, but the images of sample {sample} have grids of different size, are cut into "
                "tiles, or are videos; give frames of one size, or wrap without images_as_video"
            )
        videos.append(_as_one(frames, _filmed))
    return videos


def _as_one(run: list[Placed], layout: Callable[[list[Layout]], Layout]) -> Placed:
    images = [item.image for item in run]
    columns = torch.cat([image.columns for image in images])
    whole = Image(images[0].sample, columns, layout([image.layout for image in images]))
    return Placed(whole, tuple(i for item in run for i in item.behind))


def tiled(tiles: list[Layout]) -> Layout:
    """The layout of an image whose tiles, in the order of the tower, have layouts of their own."""
    return Layout(tiles[0].height, tiles[0].width, views=tuple(tiles))


def _filmed(frames: list[Layout]) -> Layout:
    first, cells = frames[0], None
    if first.cells is not None:
        area = first.height * first.width
        cells = tuple(cell + i * area for i in range(len(frames)) for cell in first.cells)
    return replace(first, frames=len(frames), cells=cells, medium="video")
