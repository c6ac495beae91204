"""Steps, scores, tiles in place, videos, traces that show themselves, and methods side by side."""

from __future__ import annotations

import io

import models
import numpy as np
import pytest
import torch
from PIL import Image
from selections import in_language_models
from transformers import Idefics3ImageProcessor, LlavaNextImageProcessor

import tokenreduce as tr
from tokenreduce.draw import ROLE_COLORS, animate, step_names, strip
from tokenreduce.draw.heat_map import NEVER, colors_of
from tokenreduce.draw.provenance_map import provenance_map
from tokenreduce.draw.token_map import token_map
from tokenreduce.eval import demo
from tokenreduce.layout import Layout
from tokenreduce.provenance import ImageTrace, StageTrace

PLAIN = Image.new("RGB", (100, 100), (90, 90, 90))


def stage(assign, score=None, stage="projector", layer=None, method="made", role=None, names=()):
    assign = torch.tensor(assign)
    kept = torch.unique(assign[assign >= 0], sorted=True)
    source = torch.tensor([int((assign == row).nonzero()[0]) for row in kept], dtype=torch.long)
    score = None if score is None else torch.tensor(score)
    return StageTrace(stage, layer, method, assign, source, source, role, names, score)


def traced(layout, *stages, sample=0):
    return ImageTrace(sample, layout, torch.arange(layout.num_tokens), stages)


def prompt_of(*images):
    n = sum(image.tokens_in for image in images)
    return tr.Trace.of(list(images), torch.ones(1, n, dtype=torch.bool), 0, ())


def middle(picture, column, row, columns=2, rows=2):
    """RGB in the middle of a cell of a picture without caption."""
    pixels = np.asarray(picture)
    return pixels[int((row + 0.5) * pixels.shape[0] / rows), int((column + 0.5) * pixels.shape[1] / columns)].tolist()


@pytest.fixture(scope="module")
def loaded():
    model, processor = demo.load()
    return model, processor, next(q for q in demo.questions("test", 20) if len(q.scene.things) >= 4)


def inputs_of(processor, *questions):
    text = [demo.prompt(q.question) for q in questions]
    return processor(images=[q.image for q in questions], text=text, return_tensors="pt", padding=True)


def test_steps_and_layers():
    image = traced(
        Layout(2, 2),
        stage([0, 1, 1, -1], stage="encoder", layer=0, method="first"),
        stage([0, -1, -1, -1], stage="llm", layer=2, method="second"),
    )
    assert step_names(image) == ["all tokens", "first, vision block 0", "second, layer 2 on"]
    left = {"step": (4, 3, 1), "layer": (3, 3, 1)}
    for step, alive in enumerate(left["step"]):
        assert (provenance_map(image, PLAIN.size, step=step).owner >= 0).sum() == alive
    for layer, alive in enumerate(left["layer"]):
        assert (provenance_map(image, PLAIN.size, layer=layer).owner >= 0).sum() == alive
    assert middle(tr.draw(image, PLAIN, step=0, caption=False), 1, 1) == [90, 90, 90]
    assert middle(tr.draw(image, PLAIN, layer=1, caption=False), 1, 1) == [32, 32, 32]
    for wrong, message in (({"step": 3}, "step=3"), ({"layer": -1}, "layer=-1"), ({"step": 1, "layer": 1}, "one of")):
        with pytest.raises(ValueError, match=message):
            tr.draw(image, PLAIN, **wrong)


def test_heat_map_orders_colours_by_score():
    image = traced(Layout(2, 2), stage([0, -1, -1, 1], score=[3.0, float("nan"), 1.0, float("inf")]))
    picture = tr.draw(image, PLAIN, heat=True, caption=False)
    high, gone, low, endless = (middle(picture, *place) for place in ((0, 0), (1, 0), (0, 1), (1, 1)))
    assert sum(high) > sum(low) > sum(gone)  # lightness alone tells
    assert endless == high
    assert len(set(gone)) == 1
    with pytest.raises(ValueError, match="no method ranked"):
        tr.draw(traced(Layout(2, 2), stage([0, 0, 1, 1])), PLAIN, heat=True)
    with pytest.raises(ValueError, match="finite"):
        tr.draw(traced(Layout(1, 2), stage([0, 1], score=[float("nan")] * 2)), PLAIN, heat=True)


# Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, severity 1
SEEN_BY = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_scores_are_told_apart_by_lightness_in_any_colour_vision(eyes):
    """Steps of a tenth are as clear at one end as at the other, and never turn round."""
    color = pytest.importorskip("skimage.color", reason="pip install 'tokenreduce[dev]' brings scikit-image")
    srgb = np.concatenate([[NEVER], colors_of(np.linspace(0, 1, 11), 0, 1)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SEEN_BY[eyes]).T).clip(0, 1)
    steps = np.diff(color.xyz2lab(seen @ color.colorconv.xyz_from_rgb.T)[:, 0])
    assert steps.min() > 4
    assert steps[1:].max() < 9


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_roles_keep_their_colours_in_any_colour_vision(eyes):
    """Any two outlines differ by ten in CIEDE2000 at least; about one is just noticeable side by side."""
    color = pytest.importorskip("skimage.color", reason="pip install 'tokenreduce[dev]' brings scikit-image")
    srgb = np.array(ROLE_COLORS) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SEEN_BY[eyes]).T).clip(0, 1)
    lab = color.xyz2lab(seen @ color.colorconv.xyz_from_rgb.T)
    for i, a in enumerate(lab):
        for j, b in enumerate(lab[:i]):
            assert color.deltaE_ciede2000(a, b) > 10, (ROLE_COLORS[i], ROLE_COLORS[j])


def test_tiles_in_place_and_the_whole_picture_beside_them():
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=[[56, 112]]
    )
    layout = Layout(2, 4, cells=(0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11), views=(Layout(2, 2),) * 3)
    assign = [-1] * 12
    assign[3], assign[6] = 0, 1  # the lower right quarter of the base view; the upper left cell of the second tile
    wide = Image.new("RGB", (224, 112), (90, 90, 90))
    found = provenance_map(traced(layout, stage(assign)), wide.size, processor)
    assert [panel.label for panel in found.panels] == [
        "the whole picture, 2 x 2 tokens",
        "2 tiles of 2 x 2 tokens",
    ]
    assert found.boxes[3].tolist() == [112, 56, 224, 112]
    assert found.boxes[6].tolist() == [112, 0, 168, 56]
    picture = tr.draw(traced(layout, stage(assign)), wide, processor, caption=False, side=400)
    assert picture.size == (810, 224)
    pixels = np.asarray(picture)
    assert pixels[150, 300].tolist() == pixels[50, 410 + 250].tolist() == [90, 90, 90]
    assert pixels[50, 300].tolist() == pixels[150, 410 + 250].tolist() == [32, 32, 32]


def test_tiles_that_are_images_of_their_own_are_put_together():
    processor = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    tiles = [traced(Layout(1, 1), *([stage([-1])] if dropped else [])) for dropped in (False, True, True, False, False)]
    trace = prompt_of(traced(Layout(2, 2)), *tiles)
    found = provenance_map(trace, PLAIN.size, processor, index=1)
    assert [len(panel.boxes) for panel in found.panels] == [4, 1]
    assert found.text == "made: 3 of 5 tokens"
    assert found.owner.tolist() == [0, -1, -1, 1, 2]
    picture = tr.draw(trace, PLAIN, processor, index=1, caption=False, side=100)
    assert np.asarray(picture)[25, 25].tolist() == [90, 90, 90]
    assert np.asarray(picture)[25, 75].tolist() == [32, 32, 32]
    with pytest.raises(ValueError, match="cuts this picture into 5 images"):
        tr.draw(trace, PLAIN, processor, index=2)


def test_frames_are_drawn_from_their_own_pixels_and_groups_share_a_colour(tmp_path):
    black, white = (Image.new("RGB", (40, 40), (value,) * 3) for value in (0, 200))
    layout = Layout(2, 2, frames=2)
    image = traced(layout, stage([0, 1, 2, 3, 0, -1, 4, 5]))  # cell 0 of both frames is one group
    options = {"side": 160, "caption": False}
    assert middle(tr.draw(image, white, frame=1, **options), 0, 1) == [200, 200, 200]
    assert middle(tr.draw(image, white, frame=1, **options), 1, 0) == [72, 72, 72]
    laid = np.asarray(strip(image, [black, black, white, white], columns=2, side=160))  # temporal patches of two frames
    assert laid[10 + 40, 10 + 40].tolist() == [100, 100, 100]
    assert laid[10 + 40, 180 + 40].tolist() == [55, 55, 55]  # darker: its survivor sits in the other frame
    film = animate(image, [black, white])
    assert "data:image/gif;base64," in film._repr_html_()
    for name in ("film.gif", "film.png"):
        film.save(tmp_path / name)
        with Image.open(tmp_path / name) as written:
            assert (written.n_frames, written.info["duration"]) == (2, 500)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        film.save(tmp_path / "film.gif")
    with pytest.raises(ValueError, match=r"\.gif or \.png"):
        film.save(tmp_path / "film.mp4")
    with pytest.raises(ValueError, match="frames=1"):
        strip(image, [black])


def test_frames_given_as_images_make_a_strip_too():
    trace = prompt_of(*(traced(Layout(2, 2), stage([0, -1, -1, 1], score=[4.0, 1, 2, 3])) for _ in range(3)))
    assert strip(trace, [PLAIN] * 3, columns=3, side=100).width >= 300
    assert strip(trace, [PLAIN] * 3, heat=True, side=100).height > 100


@pytest.mark.parametrize("method", in_language_models())
def test_a_trace_shows_itself(method):
    model = models.llava(grid=6)
    inputs = models.prompt(model, [2])
    with tr.wrapped(model, method, keep=0.5), torch.no_grad():
        model(**inputs)
        trace = tr.trace(model)
    bare = Image.open(io.BytesIO(trace._repr_png_()))
    photo = Image.effect_noise((60, 60), 80).convert("RGB")
    over = trace.show([photo, photo], side=200)
    assert bare.width > over.width
    assert Image.open(io.BytesIO(trace._repr_png_())).width > over.width
    assert np.array_equal(np.asarray(trace.show(side=200)), np.asarray(over))


def test_a_prompt_without_images_shows_as_text():
    assert prompt_of()._repr_png_() is None
    with pytest.raises(ValueError, match="no image"):
        prompt_of().show()


def test_map_of_views_and_frames_without_pixels():
    tiled = Layout(2, 4, cells=(0, 1, 2, 3, 4, 5), views=(Layout(2, 2), Layout(1, 2)))
    picture = token_map(traced(tiled, stage([0, -1, -1, -1, -1, 1])), caption=False, side=400)
    assert picture.width > picture.height
    film = token_map(traced(Layout(2, 2, frames=4), stage([0] * 16)), caption=False)
    assert film.size == (640, 640)


def test_compare_runs_every_method_and_leaves_the_model_alone(loaded):
    model, processor, question = loaded
    inputs = inputs_of(processor, question)
    model.generate(**inputs, max_new_tokens=1)  # transformers installs hooks of its own
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    grid = tr.compare(
        model,
        inputs,
        ["hiprune", tr.FastV(layer=1)],
        keep=[0.25, 8],
        image=question.image,
        processor=processor,
        tile=80,
    )
    one = tr.compare(model, inputs, ["hiprune"], keep=0.25, tile=80)
    assert grid.width > 3 * 80
    assert grid.height > 1.7 * one.height
    row = [tuple(line) for line in np.asarray(grid)[-14]]
    assert (55, 55, 55) in row  # the key below: what dropped looks like
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(ValueError, match="at least one"):
        tr.compare(model, inputs, [])
    with tr.wrapped(model, "random"), pytest.raises(ValueError, match="wraps it itself"):
        tr.compare(model, inputs, ["hiprune"])


def test_compare_counts_all_tiles_and_frames():
    tiles = [traced(Layout(2, 2), stage([0, -1, -1, -1])) for _ in range(5)]
    assert tr.draw.summarize(*tiles) == "5 of 20 tokens"
    assert tr.draw.summarize(tiles[0], traced(Layout(2, 2))) == "5 of 8 tokens"
    late = traced(Layout(2, 2), stage([0, 1, -1, -1]), stage([0, -1, -1, -1], stage="llm", layer=3))
    assert tr.draw.summarize(late, late) == "4 → 2 of 8 tokens, layer 3 on"
