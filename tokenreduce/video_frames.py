"""Frames of a video as they come: pictures, arrays, tensors, or a file that is decoded on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

FORMS = (
    "a path, a PIL picture, uint8 pixels (H, W, 3) as an array or (3, H, W) as a tensor, several of these as (T, H, W, 3) or "
    "(T, 3, H, W), or an iterable of any of them"
)


def frames_of(given: Any, fps: float) -> Iterator[np.ndarray]:
    """One (H, W, 3) uint8 array for each frame in ``given``, in order; a file is read ``fps`` frames for each second of it.

    Nothing is held but the frame that is being handed out.

    Errors: ``TypeError`` / ``ValueError`` for what is no frame; ``ModuleNotFoundError`` for a file where PyAV is missing.
    """
    if isinstance(given, (str, Path)):
        yield from read_file(given, fps)
    elif isinstance(given, Image.Image):
        yield np.array(given.convert("RGB"))
    elif isinstance(given, (np.ndarray, Tensor)):
        yield from _pixels(given)
    elif isinstance(given, Iterable):
        for frame in given:
            yield from frames_of(frame, fps)
    else:
        raise TypeError(f"frames={type(given).__name__}; allowed: {FORMS}")


def _pixels(given: np.ndarray | Tensor) -> Iterator[np.ndarray]:
    shape, axis = tuple(given.shape), -3 if isinstance(given, Tensor) else -1
    if str(given.dtype).removeprefix("torch.") != "uint8" or given.ndim not in (3, 4) or shape[axis] != 3:
        raise ValueError(f"frames of shape {shape} and type {given.dtype}; allowed: {FORMS}")
    if isinstance(given, Tensor):
        given = given.movedim(-3, -1).cpu().numpy()
    yield from given if given.ndim == 4 else given[None]


def read_file(path: str | Path, fps: float) -> Iterator[np.ndarray]:
    """The frames of a file's first video stream that are on screen at 0, 1 / ``fps``, 2 / ``fps``, ... seconds, one by one.

    Where the file has fewer frames per second, a frame comes as often as it is on screen at such a time.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a video file is read by PyAV, which is not installed: pip install 'tokenreduce[video]', or hand over the frames "
            "themselves"
        ) from None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate, begun, due, shown, end = float(stream.average_rate or fps), None, 0, None, 0.0
        for number, frame in enumerate(container.decode(stream)):
            time = number / rate if frame.time is None else frame.time
            begun = time if begun is None else begun
            while shown is not None and due / fps < time - begun - 1e-6:
                yield shown
                due += 1
            shown, end = frame.to_ndarray(format="rgb24"), time - begun + 1 / rate
        while shown is not None and due / fps < end - 1e-6:
            yield shown
            due += 1
