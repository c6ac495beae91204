"""Where decord has no wheels: pictures need none, and videos are read by PyAV."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tokenreduce.adapters.upstream.video_reader import VideoReader

av = pytest.importorskip("av", reason="PyAV is not installed; pip install av")
pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")

SHADES = (20, 60, 100, 140, 180, 220)

CODE = """
import json, sys
from importlib.machinery import PathFinder


class WithoutDecord(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "decord" else super().find_spec(name, path, target)


sys.meta_path = [WithoutDecord if finder is PathFinder else finder for finder in sys.meta_path]
from tokenreduce.eval.harness import TASKS, require
from tokenreduce.eval.sweep import Cell
from tokenreduce.eval.sweep.evaluator import Evaluator

require()
outcome = Evaluator().evaluate(Cell("demo", "tr_demo_images", include=(str(TASKS),), limit=2))
from qwen_vl_utils import fetch_video
frames = fetch_video({"video": sys.argv[1], "nframes": 6, "resized_height": 28, "resized_width": 28})
shades = [round(float(frame.float().mean())) for frame in frames]
print(json.dumps({"error": outcome.error, "shades": shades}))
"""


@pytest.fixture
def video(tmp_path):
    """Six frames, each of one shade."""
    path = tmp_path / "shades.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for shade in SHADES:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_are_read_as_they_are_asked_for(video):
    reader = VideoReader(str(video))
    assert len(reader) == len(SHADES)
    assert reader.get_avg_fps() == 5
    found = reader.get_batch([4, 0, -1]).asnumpy()
    assert found.shape == (3, 64, 64, 3)
    assert found.mean((1, 2, 3)) == pytest.approx([180, 20, 220], abs=3)
    assert reader[2].asnumpy().mean() == pytest.approx(100, abs=3)
    with pytest.raises(IndexError, match="has 6"):
        reader.get_batch([6])


@pytest.mark.slow
def test_pictures_need_no_decord_and_videos_are_read(video):
    done = subprocess.run([sys.executable, "-c", CODE, str(video)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["error"] is None
    assert found["shades"] == pytest.approx(SHADES, abs=4)
