"""``decord`` where it has no wheels, such as Linux on ARM: as much of it as lmms-eval and qwen-vl-utils call, read by PyAV.

| seam | seen |
| --- | --- |
| `VideoReader(file, ctx)`, its length, `reader[i]`, `get_batch(places)`, `asnumpy()`, `get_avg_fps()`; `cpu` | decord 0.6 |
| models of lmms-eval import `decord` at the top of their files, also for pictures | 0.7.3 |
| qwen-vl-utils takes `decord` where it finds its specification | 0.0.14 |
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Frames:
    """Pixels, (H, W, 3) of one frame or (T, H, W, 3) of several, uint8."""

    def __init__(self, pixels: Any) -> None:
        self._pixels = pixels

    def asnumpy(self) -> Any:
        return self._pixels


class VideoReader:
    """The first video stream of a file, from its first frame on.

    Errors: those of PyAV for a file that it cannot read; ``IndexError`` for a place that the video has not.
    """

    def __init__(self, uri: str, ctx: Any = None, **_: Any) -> None:
        import av

        self._uri = str(uri)
        with av.open(self._uri) as container:
            stream = container.streams.video[0]
            self._fps = float(stream.average_rate or stream.guessed_rate or 0)
            self._length = sum(packet.size > 0 for packet in container.demux(stream))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> Frames:
        return Frames(self.get_batch([place]).asnumpy()[0])

    def get_avg_fps(self) -> float:
        return self._fps

    def get_batch(self, indices: Sequence[int]) -> Frames:
        """The frames at ``indices``, in that order; negative ones count from the end."""
        import av
        import numpy as np

        places = [int(i) + len(self) if i < 0 else int(i) for i in indices]
        if places and not 0 <= min(places) <= max(places) < len(self):
            raise IndexError(f"frames {places}; {self._uri!r} has {len(self)}")
        wanted, found = set(places), {}
        with av.open(self._uri) as container:
            for place, frame in enumerate(container.decode(video=0)):
                if place in wanted:
                    found[place] = frame.to_ndarray(format="rgb24")
                if len(found) == len(wanted):
                    break
        return Frames(np.stack([found[place] for place in places]))


def cpu(index: int = 0) -> None:
    """Where frames are decoded; there is no other place."""


def provide_decord() -> None:
    """Where ``decord`` is not installed, let ``import decord`` find this one."""
    if "decord" in sys.modules or find_spec("decord") is not None:
        return
    made = ModuleType("decord", __doc__)
    made.__spec__ = ModuleSpec("decord", loader=None, origin=__file__)
    made.__dict__.update(VideoReader=VideoReader, cpu=cpu)
    sys.modules["decord"] = made
