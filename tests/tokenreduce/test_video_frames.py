"""Frames as they come: forms that are taken, and files at a rate of one's own."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tokenreduce.video_frames import frames_of, read_file


@pytest.fixture
def file(tmp_path):
    """Five frames a second for two seconds, frame t as bright as 25 * t."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for t in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 25 * t, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("fps", "shown"),
    [(5, range(10)), (1, [0, 5]), (2.5, [0, 2, 4, 6, 8]), (10, [t // 2 for t in range(20)]), (2, [0, 2, 5, 7])],
)
def test_a_file_is_read_at_the_rate_asked_for(file, fps, shown):
    frames = list(read_file(file, fps))
    assert frames[0].shape == (16, 32, 3)
    assert [round(float(frame.mean()) / 25) for frame in frames] == list(shown)


def test_forms_of_frames(file):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 6, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).movedim(-1, 1)
    forms = [
        pixels,
        list(pixels),
        tensor,
        list(tensor),
        [Image.fromarray(x) for x in pixels],
        iter([pixels[:1], tensor[1]]),
    ]
    for form in forms:
        assert np.array_equal(np.stack(list(frames_of(form, 1.0))), pixels)
    assert len(list(frames_of([str(file), file], 1.0))) == 4


@pytest.mark.parametrize(
    "given", [3, np.zeros((4, 6), dtype=np.uint8), torch.zeros(3, 4, 6), np.zeros((3, 4, 6), np.uint8)]
)
def test_what_is_no_frame(given):
    with pytest.raises((TypeError, ValueError), match="allowed: a path"):
        list(frames_of(given, 1.0))
