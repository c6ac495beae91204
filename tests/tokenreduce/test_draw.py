"""Pictures of kept tokens: the geometry is exact, and the picture shows what the trace says."""

from __future__ import annotations

import math
import sys

import models
import numpy as np
import pytest
import torch
from PIL import Image
from selections import in_language_models
from transformers import CLIPImageProcessor, LlavaImageProcessor

import tokenreduce as tr
from tokenreduce.draw import ROLE_COLORS, cell_boxes, describe, draw, figure, image_grid, legend, seen_box
from tokenreduce.draw.caption import font_of, one_size, wrapped
from tokenreduce.layout import Layout
from tokenreduce.provenance import ImageTrace, StageTrace

GRID = Layout(12, 12)


def clip(cls=CLIPImageProcessor, edge=168, **more):
    return cls(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}, **more)


def traced(assign, source=None, role=None, names=(), stage="projector", layer=None, method="made"):
    assign = torch.tensor(assign)
    source = torch.unique(assign[assign >= 0]) if source is None else torch.tensor(source)
    role = None if role is None else torch.tensor(role)
    return StageTrace(stage, layer, method, assign, torch.arange(len(source)), source, role, names)


def image_trace(layout, *stages):
    return ImageTrace(0, layout, torch.arange(layout.num_tokens), stages)


@pytest.mark.parametrize("size", [(168, 168), (300, 200), (200, 300), (97, 411), (512, 606), (84, 84)])
@pytest.mark.parametrize("processor", [clip(), clip(LlavaImageProcessor, do_pad=True)], ids=["crop", "pad"])
def test_bright_cell_maps_back(size, processor):
    """A cell painted white in the original is the brightest of what the tower is given."""
    boxes = cell_boxes(size, processor, GRID)
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] <= np.array(size)).all(1)
    for cell in np.flatnonzero(inside)[:: max(1, inside.sum() // 7)]:
        left, top, right, bottom = boxes[cell]
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[round(top) : max(round(bottom), round(top) + 1), round(left) : max(round(right), round(left) + 1)] = 255
        given = processor(images=[Image.fromarray(pixels)], return_tensors="pt", do_normalize=False)["pixel_values"][0]
        mean = given.mean(0).unfold(0, 14, 14).unfold(1, 14, 14).mean((2, 3)).flatten()
        if isinstance(processor, LlavaImageProcessor):  # its border has a colour of its own
            mean = mean * torch.tensor(inside)
        assert mean.argmax() == cell


def test_one_pixel_scale_is_exact():
    """A 168 x 224 image is not resized, so cells fall on whole pixels and one white cell is exactly one white patch."""
    boxes = cell_boxes((224, 168), clip(), GRID)
    assert boxes[0].tolist() == [28, 0, 42, 14]
    pixels = np.zeros((168, 224, 3), np.uint8)
    left, top, right, bottom = boxes[31].astype(int)
    pixels[top:bottom, left:right] = 255
    given = clip()(images=[Image.fromarray(pixels)], return_tensors="pt", do_normalize=False)["pixel_values"][0, 0]
    patches = given.unfold(0, 14, 14).unfold(1, 14, 14).mean((2, 3)).flatten()
    assert patches[31] == 1
    assert patches.sum() == 1


def test_seen_box_without_crop_is_the_whole_image():
    settings = {"do_resize": True, "size": {"height": 384, "width": 384}, "do_center_crop": False}
    assert seen_box((640, 480), settings) == seen_box((640, 480), None) == (0, 0, 640, 480)
    assert cell_boxes((640, 480), settings, Layout(2, 2))[3].tolist() == [320, 240, 640, 480]


def test_partial_grid_and_frames():
    assert cell_boxes((20, 20), None, Layout(2, 2, cells=(1, 3))).tolist() == [[10, 0, 20, 10], [10, 10, 20, 20]]
    boxes = cell_boxes((20, 20), None, Layout(2, 2, frames=3))
    assert boxes.shape == (12, 4)
    assert (boxes[:4] == boxes[8:]).all()


def test_size_that_cannot_be_undone_is_refused():
    with pytest.raises(ValueError, match="processor=None"):
        seen_box(
            (9, 9), {"do_resize": True, "do_center_crop": True, "size": {}, "crop_size": {"height": 1, "width": 1}}
        )


def test_kept_dropped_and_unseen_pixels():
    colour = Image.new("RGB", (200, 100), (200, 40, 40))
    shown = image_trace(Layout(2, 2), traced([0, -1, -1, 1]))
    settings = {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 100, "width": 100}}
    out = np.asarray(draw(shown, colour, settings, caption=False, side=400))
    assert out.shape == (200, 400, 3)
    assert out[50, 150].tolist() == [200, 40, 40]
    assert len(set(out[50, 250].tolist())) == 1
    assert out[50, 250, 0] < 60
    assert len(set(out[50, 20].tolist())) == 1
    assert out[50, 20, 0] > 100
    assert (out[50, 100:110] == 255).all(-1).any()


def test_merged_group_is_its_mean_colour():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 20:] = 200
    out = np.asarray(
        draw(image_trace(Layout(2, 2), traced([0, 0, 1, 1])), Image.fromarray(pixels), caption=False, side=400)
    )
    for y in (100, 300):
        assert abs(out[y, 100].astype(int) - 100).max() <= 1
        assert (out[y, 100] == out[y, 300]).all()


def test_roles_have_their_colours_also_after_a_second_stage():
    names = ("dropped", "anchor", "buffer")
    first = traced([0, 1, -1, 2], role=[1, 2, 0, 2], names=names)
    again = traced([0, -1, -1, 1], role=None)
    late = traced([0, 1, -1, -1], role=[2, 1, 0], names=names)  # roles of the three tokens that entered
    plain = Image.new("RGB", (100, 100), (90, 90, 90))
    for stages, seen, absent in (((first,), (1, 2), ()), ((first, again), (1, 2), ()), ((first, late), (1, 2), (3,))):
        out = np.asarray(draw(image_trace(Layout(2, 2), *stages), plain, caption=False)).reshape(-1, 3)
        colours = set(map(tuple, out.tolist()))
        assert all(ROLE_COLORS[role - 1] in colours for role in seen)
        assert all(ROLE_COLORS[role - 1] not in colours for role in absent)


def test_caption_counts():
    shown = image_trace(Layout(2, 2), traced([0, 1, 1, -1], source=[0, -1], method="one"))
    assert describe(shown) == "one: 2 of 4 tokens, 1 of them summaries"
    late = traced([0, -1, -1, -1], stage="llm", layer=2, method="two")
    assert describe(image_trace(Layout(2, 2), late)) == "two: 1 of 4 tokens after 2 decoder layers"
    twice = traced([0, 0, 1, -1], stage="encoder", layer=1), traced([0, 0, 0, -1], stage="encoder", layer=2)
    assert describe(image_trace(Layout(2, 2), *twice)) == "made: 1 of 4 tokens"
    assert describe(image_trace(Layout(2, 2))) == "all 4 tokens kept"


@pytest.mark.parametrize("method", in_language_models())
def test_every_method_can_be_drawn(method):
    model = models.llava(grid=6)
    inputs = models.prompt(model, [2])
    photo = Image.effect_noise((60, 60), 80).convert("RGB")
    tr.wrap(model, method, keep=0.5)
    with torch.no_grad():
        model(**inputs)
    trace = tr.trace(model)
    assert draw(trace, photo, clip(edge=48), index=1, side=300).width == 300
    with pytest.raises(ValueError, match="index=2"):
        draw(trace, photo, index=2)
    with pytest.raises(ValueError, match="frame=1"):
        draw(trace, photo, frame=1)


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (168, 200)])
def test_a_picture_that_cannot_be_what_the_model_saw_needs_its_processor(size):
    """A 14 x 14 grid is not stretched over a photograph that was cropped."""
    trace, photo = image_trace(Layout(14, 14), traced(list(range(196)))), Image.new("RGB", size)
    with pytest.raises(ValueError, match="Pass the processor"):
        draw(trace, photo)
    assert draw(trace, photo, clip()).width > 0
    assert draw(trace, photo.resize((300, 300))).width > 0


@pytest.mark.parametrize(("width", "height"), [(451, 300), (300, 451), (1000, 210), (640, 480), (64, 64), (97, 411)])
@pytest.mark.parametrize("rounding", [round, math.floor, math.ceil])
def test_a_grid_of_whole_cells_over_the_whole_picture_is_drawn_without_one(width, height, rounding):
    across, down = (max(1, rounding(side / 28)) for side in (width, height))
    whole = image_trace(Layout(down, across), traced(list(range(across * down))))
    assert draw(whole, Image.new("RGB", (width, height)), side=100).width > 0


def test_text_in_a_grid_of_images_has_one_size():
    tile, long = Image.new("RGB", (60, 60), (9, 9, 9)), "a title that is far too long for one line of its picture"
    lines = [wrapped(title, font_of(15), 120) for title in (long, "short")]
    assert len(lines[0]) > 2
    assert one_size(lines[0], font_of(15), 120).size == 15
    one = image_grid([tile, tile], [long, "short"], 2, tile=120)
    other = image_grid([tile, tile], ["short", "short"], 2, tile=120)
    assert one.height == other.height + 20 * (len(lines[0]) - 1)
    assert np.array_equal(np.asarray(one)[130:152, 140:], np.asarray(other)[130:152, 140:])
    assert one_size(["short", "unbreakable" * 5], font_of(15), 120).size < 15


def test_image_grid_and_legend():
    tile = Image.new("RGB", (30, 20), (9, 9, 9))
    made = image_grid(
        [tile, None, tile], ["a", "", "b\nc"], ["left", "right"], rows=["top", "low"], heading="all", tile=60
    )
    assert made.width > 120
    assert (np.asarray(made) == 9).all(-1).sum() == 2 * 60 * 40
    assert legend(("dropped", "anchor"), cut_off=True, width=200).width == 200
    with pytest.raises(ValueError, match="titles=1"):
        image_grid([tile, tile], ["a"], 2)


def test_figure_needs_no_pyplot():
    loaded = "matplotlib.pyplot" in sys.modules
    made = figure(image_trace(Layout(2, 2), traced([0, -1, -1, 1])), Image.new("RGB", (64, 64)), side=100)
    assert made.axes[0].images
    assert ("matplotlib.pyplot" in sys.modules) == loaded
