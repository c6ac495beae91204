"""The images of a prompt: which encoded image stands behind each, and which belong together as a video."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import torch

from tokenreduce.groups import Image


def tower_rows(samples: list[int], repeat: int) -> list[int]:
    """Encoded image behind each image of the call, when every ``repeat`` decoder rows share the images of one sample."""
    rows: list[int] = []
    first = 0
    for i, sample in enumerate(samples):
        if i and sample != samples[i - 1]:
            first = rows[-1] + 1 if sample // repeat != samples[i - 1] // repeat else first
            rows.append(first)
        else:
            rows.append(rows[-1] + 1 if i else 0)
    return rows


def as_videos(images: list[Image], encoded: list[int]) -> tuple[list[Image], list[list[int]]]:
    """The images of each sample as frames of one video, and the encoded image behind each frame."""
    videos: list[Image] = []
    rows: list[list[int]] = []
    for sample, run in groupby(zip(images, encoded), key=lambda pair: pair[0].sample):
        frames, behind = zip(*run)
        first = frames[0].layout
        if any(frame.layout != first for frame in frames):
            raise ValueError(
                f"images_as_video=True, but the images of sample {sample} have grids of different size; give frames of "
                "one size, or wrap without images_as_video"
            )
        cells = None
        if first.cells is not None:
            area = first.height * first.width
            cells = tuple(cell + i * area for i in range(len(frames)) for cell in first.cells)
        layout = replace(first, frames=len(frames), cells=cells)
        videos.append(Image(sample, torch.cat([frame.columns for frame in frames]), layout))
        rows.append(list(behind))
    return videos, rows
