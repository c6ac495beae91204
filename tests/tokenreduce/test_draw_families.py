"""From end to end for every family: a bright square, the real processor, the model, its trace, and boxes to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from zoo_processors import processor, prompt

import tokenreduce as tr
from tokenreduce.draw import cell_boxes, strip, tiles_of
from tokenreduce.eval import tiny_models as zoo

# Aya Vision's prompts need a tokenizer of its own; its tiles are held in test_draw_geometry
FAMILIES = [key for key in zoo.FAMILIES if key != "aya_vision"]
FILMED = (
    "llava_next_video",
    "llava_onevision",
    "video_llava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "smolvlm",
)


def bright(size, square):
    pixels = np.ones((size[1], size[0], 3), np.uint8)  # tiles of nothing but zeros count as padding
    left, top, right, bottom = square
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


def share(boxes, square):
    low, high = np.maximum(boxes[:, :2], square[:2]), np.minimum(boxes[:, 2:], square[2:])
    return (high - low).clip(0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)


def brightness(pixels, layouts):
    """Of every cell, through the grids of all views of all layouts; patches of packed towers come four to a token."""
    if pixels.ndim == 2:
        return pixels.mean(1).unflatten(0, (-1, 4)).mean(1).numpy()
    views = [view for layout in layouts for view in (layout.views or (layout,) * layout.frames)]
    tiles = pixels.flatten(0, -4)
    assert len(tiles) == len(views)
    means = []
    for tile, view in zip(tiles.mean(-3), views):
        rows, columns = tile.shape[0] // view.height, tile.shape[1] // view.width
        means.append(tile.unfold(0, rows, rows).unfold(1, columns, columns).mean((2, 3)).flatten())
    return torch.cat(means).numpy()


def run(key, given, names):
    """Trace of the wrapped model on what the processor makes, and those inputs."""
    plain = {"images_kwargs": {"do_normalize": False}, "videos_kwargs": {"do_normalize": False}}
    made = processor(key)(text=[prompt(key, names)], padding=True, return_tensors="pt", **given, **plain)
    model = zoo.build(key)
    with tr.wrapped(model, "random", keep=0.5), torch.no_grad():
        model(**{name: x for name, x in made.items() if name != "labels"})
        return tr.trace(model), made


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("size", [(112, 60), (60, 112), (64, 64)])
@pytest.mark.parametrize("key", FAMILIES)
def test_boxes_cover_what_the_tower_saw(key, size, tmp_path, monkeypatch):
    if key == "smolvlm":  # a package for spelling out the number of frames
        monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
    undo = processor(key)
    for square in ((8, 8, 40, 40), (size[0] - 30, size[1] - 40, size[0], size[1])):
        picture = bright(size, square)
        trace, made = run(key, {"images": [[picture]]}, ["i0"])
        count = tiles_of(size, undo)
        assert len(trace.images) == count
        layouts = [image.layout for image in trace.images]
        boxes = [cell_boxes(size, undo, layout, tile) for tile, layout in enumerate(layouts)]
        first, patches = 0, []
        for layout in layouts:
            patches += [first + cell for cell in layout.patches]
            first += sum(view.frames * view.height * view.width for view in layout.views or (layout,))
        pixels = made["pixel_values_images" if key == "video_llava" else "pixel_values"]
        seen = brightness(pixels.float(), layouts)[patches]
        assert (
            np.abs(seen - share(np.concatenate(boxes), square)).max() < 0.25
        )  # cells of eight pixels: rims weigh more
        assert np.corrcoef(seen, share(np.concatenate(boxes), square))[0, 1] > 0.98
        trace.save(tmp_path / "trace.npz", overwrite=True)
        again = tr.load_trace(tmp_path / "trace.npz")
        assert np.array_equal(tr.draw(again, picture, undo, side=99), trace.show(picture, undo, side=99))


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("size", [(640, 10), (10, 640)])
@pytest.mark.parametrize("key", ["llava_next", "llava_next_video", "llava_onevision"])
def test_of_a_long_strip_the_whole_is_seen_once(key, size):
    """Nothing of the tiles of any resolution is left; the base view squeezes the strip into a square."""
    picture, undo = bright(size, (0, 0, size[0] // 2, size[1] // 2)), processor(key)
    trace, made = run(key, {"images": [[picture]]}, ["i0"])
    boxes = cell_boxes(size, undo, trace.images[0].layout)
    assert boxes[-1, 2:].tolist() == list(size)
    seen = made["pixel_values"][0, 0].float().mean(0).unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3)).flatten()
    assert np.corrcoef(seen, share(boxes, (0, 0, size[0] // 2, size[1] // 2)))[0, 1] > 0.9
    assert tr.draw(trace, picture, undo).width > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("key", ["llava_next", "internvl", "idefics3", "qwen2_5_vl"])
def test_methods_are_compared_on_any_family(key):
    undo, picture = processor(key), bright((112, 60), (8, 8, 40, 40))
    made = undo(text=[prompt(key, ["i0"])], images=[[picture]], padding=True, return_tensors="pt")
    grid = tr.compare(
        zoo.build(key), made, ["random", "pool"], 0.5, image=picture, processor=undo, max_new_tokens=1, tile=90
    )
    assert grid.width > 3 * 90


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("key", [key for key in FILMED if key in FAMILIES])
def test_frames_of_videos(key, monkeypatch):
    if key == "smolvlm":
        monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", lambda n: "word")
    size, squares = (96, 64), [(0, 0, 32, 32), (32, 16, 64, 48), (64, 32, 96, 64), (0, 32, 32, 64)]
    frames = [bright(size, square) for square in squares for _ in range(2 if key.startswith("qwen") else 1)]
    video = np.stack([np.asarray(frame) for frame in frames])
    trace, made = run(key, {"videos": [[video]] if key == "smolvlm" else [video]}, ["v"])
    pixels = made["pixel_values_videos" if "pixel_values_videos" in made else "pixel_values"].float()
    undo, layout = processor(key), trace.images[0].layout
    per_frame = [image.layout for image in trace.images] if layout.frames == 1 else [layout]
    boxes = np.concatenate([cell_boxes(size, getattr(undo, "video_processor", undo), own) for own in per_frame])
    seen = brightness(pixels, per_frame).reshape(len(squares), -1)
    for t, square in enumerate(squares):
        own = boxes.reshape(len(squares), -1, 4)[t]
        assert np.abs(seen[t] - share(own, square)).max() < 0.25
    assert strip(trace, frames, undo, side=100).width > 400
    assert trace.show([frames], undo).width > 400
    if layout.frames > 1:
        assert np.array_equal(trace.show(frames, undo), trace.show([frames], undo))
