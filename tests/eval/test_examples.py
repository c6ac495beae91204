"""The few questions whose pictures a report shows: of every kind of picture, from every split, or why not."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.harness import TASKS
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.sweep import Cell

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")

from tokenreduce.eval.harness.examples import Examples
from tokenreduce.eval.sweep.evaluator import Evaluator

OURS = str(Path(__file__).parent / "tasks")


class Task:
    """A task of lmms-eval as far as examples ask it, with one question per entry of ``visuals``."""

    def __init__(self, *visuals):
        self.eval_docs = [{"visuals": own} for own in visuals]

    def doc_to_visual(self, doc):
        return doc["visuals"]

    def doc_to_text(self, doc):
        return "what is it?"

    def asked(self):
        requests = [
            SimpleNamespace(task_name="t", doc_id=i, args=(self.doc_to_visual,)) for i in range(len(self.eval_docs))
        ]
        return Examples(requests, None)


def decoded(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture["jpeg"])))


@pytest.fixture(scope="module")
def seen():
    """A tiny Qwen2-VL that has read a video, its inputs, and the video's frames in its grid's proportions."""
    model = zoo.build("qwen2_vl")
    inputs = zoo.inputs("qwen2_vl", "video", model)
    frames, height, width = inputs["video_grid_thw"][0].tolist()
    colors = ["red"] * (2 * frames - 1) + ["blue"]
    return model, inputs, [Image.new("RGB", (width * 16, height * 16), color) for color in colors]


@pytest.fixture(params=["gif", "mp4"])
def video(seen, request, tmp_path):
    frames, file = seen[2], tmp_path / f"video.{request.param}"
    if request.param == "gif":
        frames[0].save(file, save_all=True, append_images=frames[1:], loop=0)
        return file
    av = pytest.importorskip("av", reason="av is not installed; pip install av")
    with av.open(str(file), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width, stream.height = frames[0].size
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_image(frame)))
        out.mux(stream.encode())
    return file


def test_a_video_file_is_drawn(seen, video):
    model, inputs, _ = seen
    for methods in ((), (tr.Uniform(keep=0.5),)):
        examples = Task([str(video)]).asked()
        if methods:
            tr.wrap(model, *methods)
        try:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
            examples.observe(model, [("t", 0)], inputs)
        finally:
            if methods:
                tr.unwrap(model)
        assert examples.problems == []
        (picture,) = examples.pictures
        drawn = np.asarray(decoded(picture)).astype(int)
        first, last = drawn[:, :30].max((0, 1)), drawn[:, -30:].max((0, 1))
        if methods:  # kept tokens have white outlines
            first, last = (np.median(part[np.ptp(part, -1) > 99], 0) for part in (drawn[:, :30], drawn[:, -30:]))
        assert first[0] > 200 > 99 > first[2]  # the first frame is red
        assert last[2] > 200 > 99 > last[0]  # the last is blue
        labels = [label for label, _, _ in picture["key"]]
        assert labels == (["kept", "dropped"] if methods else [])


def test_what_cannot_be_drawn_is_told(seen, tmp_path):
    model, inputs, _ = seen
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    task = Task([str(tmp_path / "broken.mp4")], [], [object()], [])
    examples = task.asked()
    for doc_id in (0, 1):
        examples.observe(model, [("t", doc_id)], inputs)
    assert not examples.pictures
    broken, empty, unknown = examples.problems
    assert broken.startswith("t 0: ValueError:")
    assert "is not a video that" in broken
    assert empty == "t 1: it has no picture"
    assert unknown == "t 3: lmms-eval's model does not tell which question it answered"


def test_questions_of_a_validation_split_are_drawn(own_folders):
    cell = Cell("demo", "scored_validation", Recipe.of("hiprune", 0.25), include=(OURS, str(TASKS)), limit=5)
    outcome = Evaluator().evaluate(cell)
    assert outcome.error is None, outcome.error["traceback"]
    assert outcome.result["not_drawn"] == []
    assert [(p["task"], p["doc_id"]) for p in outcome.result["pictures"]] == [
        ("scored_validation", i) for i in (0, 2, 4)
    ]
    for picture in outcome.result["pictures"]:
        assert decoded(picture).size == (168, 168)
        assert [label for label, _, _ in picture["key"]][-1] == "dropped"
