"""Merging by units inside towers that pack their pictures, against the tower run unit by unit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reduced
import torch
import unit_oracle
import zoo_oracle
from merged_units import CLOSE, METHODS, SQUARES
from transformers.vision_utils import get_vision_window_index

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.tiny_models.common import VIDEO

ORDINARY = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"]


ALSO = [
    "qwen3_vl_moe",
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
    "exaone4_5",
    "hyperclovax_vision_v2",
    "glm_ocr",
]


EVERY = [*ORDINARY, *(pytest.param(key, marks=pytest.mark.long) for key in ALSO)]


PACKED = pytest.mark.parametrize("key", EVERY)


def pictures(inputs) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """What the towers are given: the name of the medium, pixels, grids."""
    names = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
    return [(medium, inputs[a], inputs[b]) for medium, (a, b) in names.items() if a in inputs]


def as_encoded(model, grid) -> torch.Tensor:
    """``grid`` (M, 3) as the tower is given it: GLM-4V shows it every frame of a video as a picture of its own."""
    if not model.config.model_type.startswith("glm"):
        return grid
    return torch.cat([torch.tensor([[1, h, w]] * t) for t, h, w in grid.tolist()])


def raster(model, grid) -> torch.Tensor:
    """(U,) unit of the tower's sequence that is each token, in the order of the prompt."""
    tower = family_of(model).towers[0]
    if not hasattr(tower, "window_size"):
        return torch.arange(int(grid.prod(dim=1).sum()) // tower.spatial_merge_size**2)
    order, _ = get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    return order.argsort()


def told(model, inputs, method):
    """By medium, the oracle's word on every pass; by medium and picture, (features, features of blocks, groups) per token."""
    found = {}
    for medium, pixels, grid in pictures(inputs):
        grid = as_encoded(model, grid)
        word = unit_oracle.explicit(model, pixels, grid, method)
        order, place = raster(model, grid), torch.empty(len(word.features), dtype=torch.long)
        place[order] = torch.arange(len(order))
        own, start = [], 0
        for n in (grid.prod(dim=1) // family_of(model).unit ** 2).tolist():
            units = order[start : start + n]
            groups = {
                int(place[u.seat]) - start: sorted(int(place[m]) - start for m in u.members)
                for u in word.units
                if start <= int(place[u.seat]) < start + n
            }
            own.append((word.features[units], [x[units] for x in word.beside], groups))
            start += n
        found[medium] = (word, own)
    return found


def images_of(trace, inputs, found):
    """The trace's images, each with what the oracle says of it."""
    queues = {m: list(own) for m, (_, own) in found.items()}
    for image in trace.images:
        is_video = inputs["input_ids"][image.sample, image.columns[0]] == VIDEO or "image" not in queues
        yield image, queues["video" if is_video else "image"].pop(0)
    assert not any(queues.values())


def agrees(key, kind, method, attn="sdpa"):
    model = reduced.model(key, attn)
    inputs = zoo.inputs(key, kind, model)
    found = told(model, inputs, method)
    rows: list[int] = []
    blocks = family_of(model).layers(0)
    handles = [b.register_forward_hook(lambda m, args, out: rows.append(len(args[0])), prepend=False) for b in blocks]
    try:
        out, trace = reduced.forward(model, inputs, method)
    finally:
        for handle in handles:
            handle.remove()
    assert rows == [n for word, _ in found.values() for n in word.rows]  # the tower really runs fewer rows
    assert rows[0] > rows[len(blocks) - 1]
    seats, values, deep = {}, {}, {}
    for image, (features, beside, groups) in images_of(trace, inputs, found):
        stage = image.reached(0)
        assert {
            int(source): (stage.assign == row).nonzero()[:, 0].tolist() for row, source in enumerate(stage.source)
        } == groups  # who merged into whom, per unit
        assert len(groups) == method.budget.count(image.tokens_in)
        tokens = sorted(groups)
        seats.setdefault(image.sample, []).append(image.columns[tokens])
        values.setdefault(image.sample, []).append(features[tokens])
        deep.setdefault(image.sample, []).append([x[tokens] for x in beside])
    visual = trace.visual[:, : inputs["attention_mask"].shape[1]]
    text = inputs["attention_mask"].bool() & ~visual
    keep = [torch.cat([row.nonzero()[:, 0], *seats.get(b, [])]).sort().values for b, row in enumerate(text)]

    def change(b, row):
        embeds, beside = row.embeds.clone(), {i: x.clone() for i, x in row.deepstack.items()}
        for at, own, parts in zip(seats.get(b, []), values.get(b, []), deep.get(b, [])):
            place = torch.searchsorted(row.columns, at)
            embeds[place] = own
            for x, part in zip(beside.values(), parts):
                x[place] = part
        return replace(row, embeds=embeds, deepstack=beside)

    expected = zoo_oracle.logits(model, inputs, keep=keep, change=change)
    for row, at, want in zip(out.logits, keep, expected, strict=True):
        torch.testing.assert_close(row[at], want, **CLOSE)


@pytest.mark.parametrize("method", METHODS)
@PACKED
def test_equals_the_tower_run_unit_by_unit(key, method):
    agrees(key, "mixed", METHODS[method](keep=0.5))


@pytest.mark.parametrize("kind", ["single", "right", "video", "image_and_video", "videos"])
@PACKED
def test_every_kind_of_prompt(key, kind):
    if kind not in zoo.kinds(key):
        pytest.skip(f"{key} takes no such prompt")
    agrees(key, kind, tr.ToMe(keep=0.4))


@pytest.mark.parametrize("key", [*ORDINARY, *SQUARES])
def test_images_of_a_batch_are_merged_as_they_are_alone(key):
    model = reduced.model(key)
    case = zoo.case(key, "mixed", model)
    for method in (tr.ToMe(keep=0.5), tr.PiToMe(keep=5, preset="keys")):
        together, trace = reduced.forward(model, case.inputs, method)
        for b in range(len(case.inputs["input_ids"])):
            alone, one = reduced.forward(model, zoo.alone(key, case, b), method)
            mine = [image for image in trace.images if image.sample == b]
            for image, own in zip(mine, one.images, strict=True):
                assert torch.equal(image.standing_for(), own.standing_for())
            last = case.inputs["attention_mask"][b].nonzero()[-1, 0]
            torch.testing.assert_close(together.logits[b, last], alone.logits[0, -1], **CLOSE)


@pytest.mark.parametrize("key", [*ORDINARY, *SQUARES])
def test_a_full_budget_changes_no_bit(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    with torch.no_grad():
        bare = model(**inputs).logits
        for method in (tr.ToMe(keep=1.0), tr.PiToMe(keep=1.0), tr.ToMe(r=0), tr.PiToMe(rho=1.0)):
            with tr.wrapped(model, method):
                assert torch.equal(model(**inputs).logits, bare)
        assert torch.equal(model(**inputs).logits, bare)


@pytest.mark.parametrize("key", ["qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_hidden_states_of_the_tower_come_at_full_width(key):
    """Every unit is told, in states of every block, the mean of all that its final row stands for."""
    model = reduced.model(key)
    inputs = zoo.inputs(key, "single", model)
    tower, caught = family_of(model).towers[0], []
    with tr.wrapped(model, tr.ToMe(keep=0.5)), torch.no_grad():
        handle = tower.register_forward_hook(lambda m, args, out: caught.append(out))
        if key == "smolvlm":
            tower(inputs["pixel_values"].flatten(0, 1), output_hidden_states=True)
        else:
            tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], output_hidden_states=True)
        handle.remove()
    bare = caught.pop(0)
    assert {x.shape for x in bare.hidden_states} == {bare.last_hidden_state.shape}


@pytest.mark.parametrize("key", ORDINARY)
def test_what_is_written_is_what_the_prompt_without_a_cache_writes(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    cached, _ = reduced.write(model, inputs, tr.ToMe(keep=0.5))
    if key != "qwen3_5":  # which keeps a state of its prompt
        assert cached == reduced.write(model, inputs, tr.ToMe(keep=0.5), use_cache=False)[0]


def test_windows_merge_within_as_long_as_they_can():
    """Block 0 of this tower attends within windows of 2 x 2 units, block 1 to the whole image."""
    model = reduced.model("qwen2_5_vl")
    inputs = zoo.inputs("qwen2_5_vl", "single", model)  # 4 x 4 units
    window = torch.arange(4)[:, None] // 2 * 2 + torch.arange(4) // 2
    for method in (tr.ToMe(r=[8]), tr.PiToMe(r=[8], preset="keys"), tr.PiToMe(r=[4], preset="keys_bsm")):
        _, trace = reduced.forward(model, inputs, method)
        stage = trace.images[0].reached(0)
        assert len(stage.source) == 16 - method.r[0]
        assert torch.equal(window.flatten()[stage.source[stage.assign]], window.flatten())
    _, trace = reduced.forward(model, inputs, tr.ToMe(r=[8, 0, 2]))  # 8 are left, of which windows hold 2 each
    assert len(trace.images[0].reached(0).source) == 6
    _, trace = reduced.forward(model, inputs, tr.ToMe(keep=2))  # fewer than windows
    assert len(trace.images[0].reached(0).source) == 2


@pytest.mark.parametrize("key", ORDINARY)
def test_eager_attention(key):
    agrees(key, "mixed", tr.ToMe(keep=0.5), attn="eager")


@pytest.mark.parametrize("key", ["qwen2_5_vl", "qwen3_vl", "glm4v", "internvl"])
def test_attention_of_a_merged_tower_can_be_ranked_by(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    for second in (tr.HiPrune(keep=4), tr.VisPruner(keep=4), tr.VisionZip(keep=4)):
        with tr.wrapped(model, tr.ToMe(keep=0.5), second), torch.no_grad():
            model(**inputs)
            assert {n for row in tr.report(model).tokens_kept for n in row} == {4}
