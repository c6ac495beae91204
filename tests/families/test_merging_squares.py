"""Merging by units in towers that pool squares of patches in raster order: squares stay whole."""

from __future__ import annotations

import pytest
import reduced
import torch
import unit_oracle
import zoo_oracle
from merged_units import CLOSE, METHODS, SQUARES
from unit_oracle import Unit

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo


def squares_agree(key, kind, method):
    """A tower that joins squares of patches: what its feature block gives is what the oracle makes of every tile."""
    model = reduced.model(key)
    family, inputs = family_of(model), zoo.inputs(key, kind, model)
    whole, groups, rows = unit_oracle.explicit_tiles(model, inputs, method)
    feature_block = family.facts().feature_block
    seen: list[int] = []
    blocks = [block.module for block in family.blocks()[: feature_block + 1]]
    handles = [b.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1])) for b in blocks]
    try:
        out, trace = reduced.forward(model, inputs, method)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == rows * len(whole)  # the tower really runs fewer rows
    assert seen[0] > seen[-1]
    seats = {}
    for image in trace.images:
        stage, units = image.reached(0), []
        for view in range(len(image.layout.views) or 1):
            area, tile = family.view().num_tokens, groups.pop(0)
            units += [Unit(u.patches, [m + view * area for m in u.members], u.seat + view * area) for u in tile]
        assert {
            int(source): (stage.assign == row).nonzero()[:, 0].tolist() for row, source in enumerate(stage.source)
        } == {u.seat: u.members for u in units}
        assert len(units) == method.budget.count(image.tokens_in)
        seats.setdefault(image.sample, []).append(image.columns[sorted(u.seat for u in units)])
    text = inputs["attention_mask"].bool() & ~trace.visual[:, : inputs["attention_mask"].shape[1]]
    keep = [torch.cat([row.nonzero()[:, 0], *seats.get(b, [])]).sort().values for b, row in enumerate(text)]

    def instead(module, args, out):
        full = whole[calls.pop(0)]
        return (full, *out[1:]) if isinstance(out, tuple) else full

    calls = [*range(len(whole))] * 2
    handle = blocks[feature_block].register_forward_hook(instead, prepend=True)
    try:
        expected = zoo_oracle.logits(model, inputs, keep=keep)
    finally:
        handle.remove()
    for row, at, want in zip(out.logits, keep, expected, strict=True):
        torch.testing.assert_close(row[at], want, **CLOSE)


MORE = [pytest.param(key, marks=pytest.mark.long) for key in ("idefics3", "cohere2_vision", "qianfan_ocr")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", [*SQUARES, *MORE])
def test_squares_of_patches_stay_whole(key, method):
    squares_agree(key, "mixed", METHODS[method](keep=0.5))


@pytest.mark.parametrize("key", [*SQUARES, *MORE])
def test_squares_of_patches_in_videos_and_behind_padding(key):
    share = (
        0.5 if zoo.build(key).config.model_type in ("internvl", "qianfan_ocr") else 0.4
    )  # of an image, in whole units of tiles
    for kind in {"right", "video"} & set(zoo.kinds(key)):
        squares_agree(key, kind, tr.ToMe(keep=share))


def test_tiles_share_the_budget_of_their_image():
    model = reduced.model("internvl")
    inputs = zoo.inputs("internvl", "mixed", model)
    for keep in (0.3, 20):
        with tr.wrapped(model, tr.ToMe(keep=keep)), torch.no_grad():
            model(**inputs)
            report = tr.report(model)
        assert report.tokens_kept == [
            [min(n, keep) if isinstance(keep, int) else round(keep * n) for n in row] for row in report.tokens_in
        ]
    with tr.wrapped(model, tr.ToMe(keep=0.5)), torch.no_grad():
        with pytest.raises(ValueError, match=r"only the prompt tells .* at='projector'"):
            model.get_image_features(pixel_values=inputs["pixel_values"])
        written = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert written.shape[1] == inputs["input_ids"].shape[1] + 2
        assert [[n // 2 for n in row] for row in tr.report(model).tokens_in] == tr.report(model).tokens_kept
