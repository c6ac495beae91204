"""Boxes are right to the pixel: an image with one bright square, put through the real processors.

What a processor hands to the vision tower is compared token by token with the share of the token's box that the square
covers. Layouts are built by hand from the processor's output and the models' own way of arranging tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bright_squares import PLAIN, SIZES, bright, cell_means, check, covered, squares
from transformers import (
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    LlavaImageProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
)

from tokenreduce.draw import cell_boxes, seen_box, tiles_of
from tokenreduce.layout import Layout

WHOLE = {
    "siglip": SiglipImageProcessor(size={"height": 196, "width": 196}),
    "gemma3": Gemma3ImageProcessor(size={"height": 196, "width": 196}),
    "clip without crop": CLIPImageProcessor(size={"height": 196, "width": 196}, do_center_crop=False),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", WHOLE)
def test_one_grid_over_the_whole_image(name, size):
    processor, layout = WHOLE[name], Layout(14, 14)
    assert tiles_of(size, processor) == 1
    for square in squares(size):
        pixels = processor(images=[bright(size, square)], **PLAIN)["pixel_values"][0]
        check(cell_means(pixels, 14, 14), covered(cell_boxes(size, processor, layout), square))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [CLIPImageProcessor, LlavaImageProcessor])
def test_centre_crop_and_square_border(kind, size):
    edge = {"size": {"shortest_edge": 196}, "crop_size": {"height": 196, "width": 196}}
    processor = kind(**edge, **({"do_pad": True, "image_mean": [0, 0, 0]} if kind is LlavaImageProcessor else {}))
    boxes, seen = cell_boxes(size, processor, Layout(14, 14)), 0
    for square in squares(size):
        share = covered(boxes, square)
        if share.any():  # a corner may be cut off
            pixels = processor(images=[bright(size, square)], **PLAIN)["pixel_values"][0]
            check(cell_means(pixels, 14, 14), share)
            seen += 1
    assert seen


@pytest.mark.parametrize("size", SIZES)
def test_dynamic_resolution(size):
    """Qwen-VL: tokens are 2 x 2 patches of the whole image, whatever its proportions."""
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 200})
    for square in squares(size):
        made = processor(images=[bright(size, square)], **PLAIN)
        _, rows, columns = made["image_grid_thw"][0].tolist()
        brightness = (
            made["pixel_values"].mean(1).unflatten(0, (-1, 4)).mean(1).numpy()
        )  # patches of a token are adjacent
        check(brightness, covered(cell_boxes(size, processor, Layout(rows // 2, columns // 2)), square))


def test_frames_of_a_video_and_of_temporal_patches():
    """A square that moves from frame to frame; two frames make one temporal patch."""
    processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 100}, cap_pixels_per_frame=False
    )
    size, places = (320, 200), [(0, 0, 80, 80), (120, 60, 200, 140), (240, 120, 320, 200)]
    frames = [bright(size, square) for square in places for _ in range(2)]
    video = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in frames])
    made = processor(videos=[video], do_normalize=False, do_sample_frames=False, return_tensors="pt")
    times, rows, columns = made["video_grid_thw"][0].tolist()
    assert times == 3
    layout = Layout(rows // 2, columns // 2, frames=3)
    brightness = made["pixel_values_videos"].mean(1).unflatten(0, (-1, 4)).mean(1).numpy()
    boxes = cell_boxes(size, processor, layout).reshape(3, -1, 4)
    for frame, square in enumerate(places):
        check(brightness.reshape(3, -1)[frame], covered(boxes[frame], square))


def test_a_processor_for_images_and_videos_is_asked_for_the_right_one():
    class Both:
        image_processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        video_processor = Qwen2VLVideoProcessor()

    assert seen_box((112, 56), Both()) == (28, 0, 84, 56)
    assert cell_boxes((112, 56), Both(), Layout(2, 2, frames=2))[0].tolist() == [0, 0, 56, 28]
    assert cell_boxes((112, 56), Both(), Layout(2, 2))[0].tolist() == [28, 0, 56, 28]


@pytest.mark.parametrize("size", SIZES)
def test_torchvision_transforms_of_timm_and_open_clip(size):
    from timm.data import create_transform
    from torchvision.transforms import v2

    (width, height), edge = size, min(size) // 2
    square = ((width - edge) // 2, (height - edge) // 2, (width + edge) // 2, (height + edge) // 2)
    for transform in (
        create_transform((3, 196, 196), is_training=False, crop_pct=0.9, mean=(0, 0, 0), std=(1, 1, 1)),
        create_transform((3, 196, 196), crop_mode="squash", crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1)),
        v2.Compose([v2.Resize(196), v2.CenterCrop(196), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    ):
        pixels = transform(bright(size, square))
        check(cell_means(pixels, 14, 14), covered(cell_boxes(size, transform, Layout(14, 14)), square))


def test_preprocessing_that_cannot_be_undone_is_refused():
    from torchvision.transforms import v2

    with pytest.raises(ValueError, match="RandomCrop"):
        cell_boxes((9, 9), v2.Compose([v2.RandomCrop(5)]), Layout(2, 2))
    with pytest.raises(ValueError, match="no settings of an image processor"):
        cell_boxes((9, 9), object(), Layout(2, 2))
