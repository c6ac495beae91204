"""Boxes of images that are cut into tiles are right to the pixel, through the real processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bright_squares import PATCH, PLAIN, SIZES, bright, cell_means, check, covered, squares
from transformers import (
    AyaVisionProcessor,
    Gemma3ImageProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    LlavaNextImageProcessor,
    LlavaOnevisionImageProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image
from zoo_processors import tokenizer

from tokenreduce.draw import cell_boxes, tiles_of, view_boxes
from tokenreduce.layout import Layout


def anyres_layout(size: tuple[int, int], pinpoints: list[list[int]], edge: int) -> tuple[Layout, np.ndarray]:
    """Layout of base view and unpadded tiles, and for each token its cell through the grids of all views.

    Tiles are put together and unpadded by the model's own functions, on numbers instead of features.
    """
    grid = edge // PATCH
    rows, columns = get_anyres_image_grid_shape((size[1], size[0]), pinpoints, edge)
    numbers = torch.arange(grid * grid, (1 + rows * columns) * grid * grid).view(rows, columns, grid, grid)
    stitched = numbers.permute(0, 2, 1, 3).flatten(0, 1).flatten(1, 2)
    left = unpad_image(stitched[None].float(), (size[1], size[0]))[0].long()
    place = torch.cat([torch.arange(grid * grid), left.flatten()])
    survivors = place.sort().values  # through all views, in the order of each
    views = tuple(
        Layout(grid, grid, cells=tuple((own % (grid * grid)).tolist()))
        for own in (survivors[survivors // (grid * grid) == v] for v in range(1 + rows * columns))
    )
    cells = tuple(torch.searchsorted(survivors, place).tolist())
    return Layout(left.shape[0], left.shape[1], cells=cells, views=views), place.numpy()


ANYRES = {
    "next": LlavaNextImageProcessor(
        size={"shortest_edge": 112},
        crop_size={"height": 112, "width": 112},
        image_grid_pinpoints=[[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]],
    ),
    "onevision": LlavaOnevisionImageProcessor(
        size={"height": 112, "width": 112},
        image_grid_pinpoints=[[112 * a, 112 * b] for a in range(1, 5) for b in range(1, 5)],
    ),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ANYRES)
def test_anyres_tiles_with_unpadding(name, size):
    processor = ANYRES[name]
    layout, place = anyres_layout(size, processor.image_grid_pinpoints, 112)
    boxes = cell_boxes(size, processor, layout)
    for square in squares(size):
        pixels = processor(images=[bright(size, square)], **PLAIN)["pixel_values"][0]
        assert len(layout.views) == len(pixels)
        through = np.concatenate([cell_means(tile, 8, 8) for tile in pixels])
        base, share = len(layout.views[0].patches), covered(boxes, square)
        check(through[place][:base], share[:base])
        check(through[place][base:], share[base:], tolerance=0.12)  # small images are enlarged, which blurs more


def test_onevision_with_pooled_tiles():
    """Above ``anyres_max`` tokens, the unpadded tiles are resized to one smaller grid."""
    processor, size = ANYRES["onevision"], (640, 400)
    layout, place = anyres_layout(size, processor.image_grid_pinpoints, 112)
    whole, (height, width) = 64, (layout.height // 2, layout.width // 2)
    pooled = Layout(height, width, views=(Layout(8, 8), Layout(height, width)))
    boxes = cell_boxes(size, processor, pooled)
    assert boxes.shape == (whole + height * width, 4)
    for square in squares(size):
        pixels = processor(images=[bright(size, square)], **PLAIN)["pixel_values"][0]
        through = np.concatenate([cell_means(tile, 8, 8) for tile in pixels])
        fine = torch.from_numpy(through[place][whole:]).view(1, 1, layout.height, layout.width)
        resized = torch.nn.functional.interpolate(fine, (height, width), mode="area")[0, 0].flatten().numpy()
        check(resized, covered(boxes[whole:], square), tolerance=0.12)


def test_onevision_image_among_several_has_a_square_border():
    processor, size = ANYRES["onevision"], (300, 200)
    square = squares(size)[1]
    images = [[bright(size, square), bright(size, square)]]
    pixels = processor(images=images, **PLAIN)["pixel_values"][0][0]
    share = covered(cell_boxes(size, processor, Layout(8, 8)), square)
    inside = share > 0  # the border has a colour of its own
    check(cell_means(pixels, 8, 8)[inside], share[inside])


@pytest.mark.parametrize("size", [*SIZES, (112, 112)])
def test_internvl_tiles_and_thumbnail(size):
    processor = GotOcr2ImageProcessor(size={"height": 112, "width": 112}, crop_to_patches=True, max_patches=8)
    for square in squares(size):
        made = processor(images=[bright(size, square)], **PLAIN)
        count = int(made["num_patches"][0])
        layout = Layout(4, 4, views=(Layout(4, 4),) * count if count > 1 else ())
        brightness = np.concatenate([cell_means(tile, 4, 4) for tile in made["pixel_values"]])
        check(brightness, covered(cell_boxes(size, processor, layout), square))
        thumbnail = view_boxes(size, processor, layout)[-1]
        assert thumbnail == (0, 0, *size)


@pytest.mark.parametrize("size", [*SIZES, (112, 112), (250, 250), (900, 890), (224, 112)])
def test_tiles_of_aya_vision(size):
    images = GotOcr2ImageProcessor(size={"height": 112, "width": 112}, max_patches=6)
    processor = AyaVisionProcessor(images, tokenizer())
    layout, count = Layout(4, 4), tiles_of(size, processor)
    assert tiles_of(size, images) == 1
    for square in squares(size):
        pixels = images(images=[bright(size, square)], crop_to_patches=True, **PLAIN)["pixel_values"]
        assert len(pixels) == count
        brightness = np.concatenate([cell_means(tile, 4, 4) for tile in pixels])
        boxes = np.concatenate([cell_boxes(size, processor, layout, tile) for tile in range(count)])
        check(brightness, covered(boxes, square))


@pytest.mark.parametrize("size", [*SIZES, (100, 100), (4500, 900)])
@pytest.mark.parametrize("kind", [Idefics3ImageProcessor, SmolVLMImageProcessor])
def test_tiles_that_are_images_of_their_own(kind, size):
    processor = kind(size={"longest_edge": 336}, max_image_size={"longest_edge": 112})
    layout, count = Layout(4, 4), tiles_of(size, processor)
    for square in squares(size):
        pixels = processor(images=[bright(size, square)], **PLAIN)["pixel_values"][0]
        assert len(pixels) == count
        brightness = np.concatenate([cell_means(tile, 4, 4) for tile in pixels])
        boxes = np.concatenate([cell_boxes(size, processor, layout, tile) for tile in range(count)])
        check(brightness, covered(boxes, square), tolerance=0.12)
    with pytest.raises(ValueError, match=f"tile={count}"):
        cell_boxes(size, processor, layout, count)


@pytest.mark.parametrize("size", [(640, 200), (200, 700), (300, 290)])
def test_pan_and_scan(size):
    processor = Gemma3ImageProcessor(
        size={"height": 112, "width": 112},
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=64,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    for square in squares(size):
        pixels = processor(images=[bright(size, square)], **PLAIN)["pixel_values"]
        assert len(pixels) == tiles_of(size, processor)
        boxes = [cell_boxes(size, processor, Layout(4, 4), tile) for tile in range(len(pixels))]
        brightness = np.concatenate([cell_means(tile, 4, 4) for tile in pixels])
        check(brightness, covered(np.concatenate(boxes), square), tolerance=0.12)


def test_views_of_another_processor_are_refused():
    layout = Layout(8, 8, views=(Layout(4, 4),) * 3)
    for processor in (None, SiglipImageProcessor(size={"height": 196, "width": 196}), ANYRES["next"]):
        with pytest.raises(ValueError, match="the processor and the image"):
            cell_boxes((300, 300), processor, layout)
