"""Boxes are right to the pixel: an image with one bright square, put through the real processors.

What a processor hands to the vision tower is compared token by token with the share of the token's box that the square
covers. Layouts are built by hand from the processor's output and the models' own way of arranging tiles.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AyaVisionProcessor,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    LlavaOnevisionImageProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image
from zoo_processors import tokenizer

from tokenreduce.draw import cell_boxes, seen_box, tiles_of, view_boxes
from tokenreduce.layout import Layout

PLAIN = {"do_normalize": False, "return_tensors": "pt"}
SIZES = [(300, 200), (200, 300), (340, 340), (97, 411), (640, 480), (1000, 210)]
PATCH = 14


def bright(size: tuple[int, int], square: tuple[int, int, int, int]) -> Image.Image:
    """A black image of ``size`` (width, height) with one white square (left, top, right, bottom)."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    left, top, right, bottom = square
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


def squares(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Three squares of a third of the shorter side: in a corner, off the middle, at the far end."""
    width, height = size
    edge = min(size) // 3
    places = [(0, 0), ((width - edge) // 2 + 3, (height - edge) // 3), (width - edge, height - edge)]
    return [(x, y, x + edge, y + edge) for x, y in places]


def covered(boxes: np.ndarray, square: tuple[int, int, int, int]) -> np.ndarray:
    """(N,) share of each box that the square covers."""
    low = np.maximum(boxes[:, :2], square[:2])
    high = np.minimum(boxes[:, 2:], square[2:])
    return (high - low).clip(0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)


def cell_means(pixels: torch.Tensor, height: int, width: int) -> np.ndarray:
    """(height * width,) brightness of equal cells of an image (3, H, W), H and W multiples of the grid."""
    gray = pixels.float().mean(0)
    cells = gray.unfold(0, gray.shape[0] // height, gray.shape[0] // height)
    return cells.unfold(1, gray.shape[1] // width, gray.shape[1] // width).mean((2, 3)).flatten().numpy()


def check(brightness: np.ndarray, share: np.ndarray, tolerance: float = 0.08) -> None:
    """Resampling blurs the rim of the square; nothing else may differ, and the bright tokens are the covered ones."""
    assert brightness.shape == share.shape
    assert np.abs(brightness - share).max() < tolerance
    clear = np.abs(share - 0.5) > tolerance
    assert ((brightness > 0.5) == (share > 0.5))[clear].all()
    assert share.any()


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


def test_views_of_another_processor_are_refused():
    layout = Layout(8, 8, views=(Layout(4, 4),) * 3)
    for processor in (None, WHOLE["siglip"], ANYRES["next"]):
        with pytest.raises(ValueError, match="the processor and the image"):
            cell_boxes((300, 300), processor, layout)
