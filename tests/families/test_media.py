"""A video is a video by the word of its placeholder, also where a single frame, or step of time, of it reaches the prompt."""

from __future__ import annotations

import pytest
import reduced
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

#: families that write the placeholders of images for frames of a video
FRAMES_ARE_IMAGES = ("internvl", "smolvlm", "glm4v", "glm4v_moe", "glm46v", "glm_ocr")


def one_step(key: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A prompt with an image and a video of a single step of time, or the latter alone."""
    family = zoo.KNOWN[key]
    shape, least = family.film_shape, 2 if key == "ernie4_5_vl_moe" else 1
    monkeypatch.setattr(family, "film_shape", least if isinstance(shape, int) else (least, *shape[1:]), raising=False)
    kind = "image_and_video" if "image_and_video" in zoo.kinds(key) else "video"
    return zoo.inputs(key, kind, reduced.model(key))


@pytest.mark.parametrize("key", reduced.VIDEO)
def test_a_single_frame_is_a_video(key, monkeypatch):
    inputs = one_step(key, monkeypatch)
    _, trace = reduced.forward(reduced.model(key), inputs, tr.Uniform(keep=0.5))
    *images, video = trace.images
    assert {image.layout.medium for image in images} <= {"image"}
    assert video.layout.frames == 1
    assert video.layout.medium == ("image" if key in FRAMES_ARE_IMAGES else "video")


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_an_image_is_none(key):
    _, trace = reduced.forward(reduced.model(key), zoo.inputs(key, "single", reduced.model(key)), tr.Uniform(keep=0.5))
    assert {image.layout.medium for image in trace.images} == {"image"}


@pytest.mark.parametrize("key", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "gemma4"])
def test_methods_for_videos_reduce_it_and_leave_the_image(key, monkeypatch):
    inputs = one_step(key, monkeypatch)
    _, trace = reduced.forward(reduced.model(key), inputs, tr.HoliTom(keep=0.5, inner_keep=1.0))
    image, video = trace.images
    assert len(image.kept()) == image.tokens_in
    assert len(video.kept()) == round(video.tokens_in / 2)


def test_frames_given_as_images_are_a_video_also_when_there_is_one():
    model = reduced.model("llava")
    with tr.wrapped(model, tr.HoliTom(keep=0.25, inner_keep=1.0), images_as_video=True), torch.no_grad():
        model(**zoo.inputs("llava", "single", model))
        (video,) = tr.trace(model).images
    assert video.layout.medium == "video"
    assert len(video.kept()) == round(video.tokens_in / 4)
