"""MustDrop in a whole model, against the bare one taken apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from models import llava, prompt
from mustdrop_steps import described
from oracle import embeddings, run
from torch import Tensor

import tokenreduce as tr
from tokenreduce.kernels.window_similarity import window_similarity
from tokenreduce.methods.mustdrop import KEY, ROLES, MustDrop, Route

TOLERANCE = 3e-5  # float32 logits of size 5; batched and single matrix products round differently


@pytest.fixture(scope="module")
def model():
    return llava(grid=6)


@torch.no_grad()
def taken_apart(model, pixels: Tensor, r: int) -> tuple[Tensor, list[int]]:
    """Projected features of one image in the released order, and the patch each sits at: the tower by hand."""
    tower = model.model.vision_tower
    core = getattr(tower, "vision_model", tower)
    x = core.pre_layrnorm(core.embeddings(pixels))
    blocks = core.encoder.layers

    def forward(block: Any, x: Tensor) -> Tensor:
        out = block(x, attention_mask=None)
        return out[0] if isinstance(out, tuple) else out

    x = forward(blocks[0], x)
    rows = described(window_similarity(x[:, 1:], 6, 6, 3)[0].tolist(), r, 6, 6, 3)
    x = torch.cat([x[:, :1], torch.stack([x[0, 1:][row].mean(dim=0) for row in rows])[None]], dim=1)
    for block in blocks[1:-1]:
        x = forward(block, x)
    return model.model.multi_modal_projector(x[:, 1:])[0], [max(row) for row in rows]


@pytest.mark.parametrize("order", ["raster", "reference"])
def test_a_wrapped_llava_equals_the_bare_one_taken_apart(model, order) -> None:
    inputs = prompt(model, [1])
    method = MustDrop(keep=0.4, output_order=order, positions="renumber" if order == "reference" else "keep")
    with tr.wrapped(model, method), torch.no_grad():
        logits = model(**inputs).logits[0]
        trace, report = tr.trace(model), tr.report(model)
    planned = method.schedule(36, Route(5, True))
    assert [row[0] for row in report.tokens_at_layer] == [planned[0], *planned[1:], planned[-1]]
    r = (36 - planned[0]) // 8
    assert r > 0
    features, at = taken_apart(model, inputs["pixel_values"], r)
    ids = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    first, last = int(ids[0]), int(ids[-1])
    bare = embeddings(model, inputs)[0]
    order_of = sorted(range(len(at)), key=lambda i: at[i]) if order == "raster" else list(range(len(at)))
    embeds = torch.cat([bare[:first], features[order_of], bare[last + 1 :]])
    columns = [
        *range(first),
        *(first + at[i] for i in sorted(order_of, key=lambda i: at[i])),
        *range(last + 1, len(bare)),
    ]
    stays = {
        k: torch.tensor([c < first or c > last or c in trace.kept_at[k][0] for c in columns]) for k in trace.kept_at
    }
    if order == "raster":
        expected = run(model, embeds, torch.tensor(columns), stays)
    else:
        alive, numbered = torch.ones(len(columns), dtype=torch.bool), {}
        for k, stay in stays.items():
            alive &= stay
            numbered[k] = torch.arange(int(alive.sum()))
        expected = run(model, embeds, torch.arange(len(columns)), stays, numbered)
    torch.testing.assert_close(logits[-1], expected[-1], atol=TOLERANCE, rtol=0)


def test_keys_survive_and_the_cache_forgets(model) -> None:
    inputs = prompt(model, [1])
    text = inputs["input_ids"].shape[1] - 36
    method = MustDrop(keep=0.4, layers=(1, 2), key_rate=0.1)
    with tr.wrapped(model, method), torch.no_grad():
        cache = model(**inputs).past_key_values
        (image,) = tr.trace(model).images
        report = tr.report(model)
    final = report.tokens_kept[0][0]
    entered = [row[0] for row in report.tokens_at_layer]
    assert entered[:2] == [entered[0]] * 2
    assert entered[0] > entered[2] > entered[4] == final
    held = [layer.keys.shape[2] - text for layer in cache.layers]
    assert held == [entered[0], *[final] * 4]
    named = next(stage for stage in image.stages if stage.role is not None)
    assert named.role_names == ROLES
    keys = named.source[named.role[named.source] == KEY]
    assert len(keys) == math.ceil(0.1 * entered[0])
    assert set(keys.tolist()) <= set(image.stages[-1].source.tolist())


@pytest.mark.parametrize(
    "parameters",
    [
        {"keep": 0.4},
        {"keep": 0.3, "merge_to": 20},
        {"keep": 0.4, "merge": False, "score": "global_mean"},
        {"keep": 1 / 3, "mode": "threshold", "merge": False, "global_threshold": 0.03, "individual_threshold": 0.06},
    ],
    ids=str,
)
def test_a_batch_equals_its_samples(model, parameters) -> None:
    inputs = prompt(model, [1, 0, 2, 1], "left")
    with tr.wrapped(model, MustDrop(**parameters)), torch.no_grad():
        together, trace = model(**inputs).logits, tr.trace(model)
        written = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, -3:]
        first = 0
        for b, count in enumerate((1, 0, 2, 1)):
            real = inputs["attention_mask"][b].bool()
            offset = int(real.nonzero()[0])
            alone = {"input_ids": inputs["input_ids"][b][real][None], "attention_mask": torch.ones(1, int(real.sum()))}
            if count:
                alone["pixel_values"] = inputs["pixel_values"][first : first + count]
            first += count
            assert torch.equal(model.generate(**alone, max_new_tokens=3, do_sample=False)[0, -3:], written[b])
            shifted = (torch.arange(int(real.sum())) + offset)[None]
            single = model(**alone, position_ids=shifted).logits
            torch.testing.assert_close(together[b, -1], single[0, -1], atol=TOLERANCE, rtol=0)
            for layer, kept in tr.trace(model).kept_at.items():
                assert torch.equal(kept[0] + offset, trace.kept_at[layer][b])


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_without_a_trimmed_cache_generation_needs_none(model, positions) -> None:
    inputs = prompt(model, [1, 2], "left")
    with tr.wrapped(model, MustDrop(keep=0.4, trim_cache=False, positions=positions)):
        cached = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False), cached)


def test_a_tower_without_cls() -> None:
    model = llava("siglip", "qwen2", grid=6)
    inputs = prompt(model, [2, 1], "left")
    method = MustDrop(keep=0.4, score="global_mean")
    with tr.wrapped(model, method), torch.no_grad():
        model(**inputs)
        report = tr.report(model)
    first, *later = method.schedule(36, Route(5, True))
    assert report.tokens_at_layer == [[2 * n, n] for n in (first, *later, later[-1])]


def test_windows_that_merge_by_likeness_do_so_in_each_image(model) -> None:
    """Images that share a pass through the tower merge as they would alone, or, as released, all at the least count."""
    inputs = prompt(model, [2])
    tower = model.model.vision_tower
    core = getattr(tower, "vision_model", tower)
    with torch.no_grad():
        out = core.encoder.layers[0](core.pre_layrnorm(core.embeddings(inputs["pixel_values"])), attention_mask=None)
    x = out[0] if isinstance(out, tuple) else out
    alike = window_similarity(x[:, 1:], 6, 6, 3)
    best = alike.amax(dim=1)
    between = float(best.mean())  # one image has a window above it, the other none
    method = MustDrop(keep=1 / 3, mode="threshold", similarity=between)
    with tr.wrapped(model, method), torch.no_grad():
        model(**inputs)
        together = [image.reached(-1).source.numel() for image in tr.trace(model).images]
        assert together[best.argmin()] == 36
        alone = prompt(model, [1]) | {"pixel_values": inputs["pixel_values"][best.argmax() :][:1]}
        model(**alone)
        assert tr.report(model).tokens_at_layer[0] == [together[best.argmax()]]
        assert together[best.argmax()] < 36
    with tr.wrapped(model, method, batch_min=True), torch.no_grad():
        model(**inputs)
        assert tr.report(model).tokens_at_layer[0] == [72]


@torch.no_grad()
def test_ids_from_the_length_of_the_cache_are_those_of_each_row_also_with_padding_behind_it(model):
    inputs = prompt(model, [1, 2], "right")
    lengths = inputs["attention_mask"].sum(dim=1)

    def following(rows: slice, width: int, images: slice) -> Tensor:
        own = {name: inputs[name][rows, :width] for name in ("input_ids", "attention_mask")}
        ids, more = lengths[rows][:, None], torch.ones(len(lengths[rows]), 1, dtype=torch.long)
        with tr.wrapped(model, MustDrop(keep=12, window=2, legacy_decode_ids=True)):
            cache = model(**own, pixel_values=inputs["pixel_values"][images]).past_key_values
            mask = torch.cat([own["attention_mask"], more], dim=1)
            given = {"attention_mask": mask, "position_ids": ids, "past_key_values": cache}
            return model(input_ids=torch.full_like(more, 5), **given).logits

    together = following(slice(2), int(lengths.max()), slice(3))
    assert int(lengths[0]) < int(lengths.max())
    torch.testing.assert_close(together[:1], following(slice(1), int(lengths[0]), slice(1)), atol=TOLERANCE, rtol=1e-5)
