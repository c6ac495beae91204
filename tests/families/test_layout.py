"""The map from tokens to cells, on every family: a token is made of the pixels that its layout says, and of no others."""

from __future__ import annotations

import pytest
import reduced
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.eval.tiny_models.common import SIDE

BLOCKS = ("layers.", "blocks.", "encoder.layer.")


def without_mixing(key: str):
    """A model whose tower keeps its patches apart: no block adds to the residual stream."""
    model = zoo.build(key)
    for name, p in model.named_parameters():
        if "language_model" not in name and any(word in name for word in BLOCKS) and p.ndim > 1:
            torch.nn.init.zeros_(p)
    return model


def features(model, inputs: dict) -> torch.Tensor:
    """(B, L, D) what the model hands to its decoder."""
    held: list[torch.Tensor] = []
    hook = decoder_of(model).register_forward_pre_hook(
        lambda module, args, kwargs: held.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return held[0]


def where(key: str, case: zoo.Case, images: list) -> list[tuple[str, int]]:
    """Of each picture in the trace: its pixel tensor, and the first of its tiles (patches, in Qwen) in there."""
    found, counts = [], dict.fromkeys((name for name in case.inputs if name.startswith("pixel_values")), 0)
    seen: dict[tuple[str, int], int] = {}
    for image in images:
        own = next(v for v in case.visuals[image.sample] if image.columns[0] in v.columns)
        names = [name for name in counts if name.endswith("videos") == (own.modality == "video")]
        name = names[0] if names else "pixel_values"
        x, views = case.inputs[name], len(image.layout.views) or image.layout.frames
        if key.startswith("qwen"):
            views = 4 * image.layout.num_tokens
        if key in ("smolvlm", "idefics3"):  # (samples, most tiles, ...)
            first = image.sample * x.shape[1] + seen.setdefault((name, image.sample), 0)
            seen[name, image.sample] += 1
        elif x.ndim == 5 and name != "pixel_values_videos":  # (images, most tiles, ...)
            first, views = counts[name], x.shape[1]
        else:
            first = counts[name]
        counts[name] += views
        found.append((name, first))
    return found


def box(layout: tr.Layout, n: int) -> tuple[int, slice, slice]:
    """Tile or frame of token ``n``, and the rows and columns of pixels in it."""
    cell, tile = layout.patches[n], 0
    for grid in layout.views or [layout]:
        area = grid.height * grid.width
        if cell < area * grid.frames:
            break
        cell, tile = cell - area * grid.frames, tile + grid.frames
    tile, cell = tile + cell // area, cell % area
    down, across = SIDE // grid.height, SIDE // grid.width
    y, x = cell // grid.width * down, cell % grid.width * across
    return tile, slice(y, y + down), slice(x, x + across)


KINDS = ("mixed", "image_and_video", "video")


@pytest.mark.parametrize(("key", "kind"), [(key, k) for key in reduced.FAMILIES for k in KINDS if k in zoo.kinds(key)])
def test_a_token_is_made_of_the_pixels_of_its_cell(key, kind):
    model = without_mixing(key)
    case = zoo.case(key, kind, model)
    _, trace = reduced.forward(model, case.inputs, tr.Uniform(keep=0.5))
    pixels = {name: x.clone().requires_grad_() for name, x in case.inputs.items() if name.startswith("pixel_values")}
    made = features(model, {**case.inputs, **pixels})
    for image, (name, first) in zip(trace.images, where(key, case, trace.images), strict=True):
        for n in {*range(0, image.tokens_in, 5), image.tokens_in - 1}:
            token = made[image.sample, image.columns[n]].sum()
            (change,) = torch.autograd.grad(token, pixels[name], retain_graph=True)
            expected = torch.zeros_like(change)
            if key.startswith("qwen"):  # patches come in units of four
                expected[first + 4 * n : first + 4 * n + 4] = 1
            else:
                tile, rows, columns = box(image.layout, n)
                expected.view(-1, 3, SIDE, SIDE)[first + tile, :, rows, columns] = 1
            assert torch.equal(change != 0, expected.bool()), (image.sample, n)
