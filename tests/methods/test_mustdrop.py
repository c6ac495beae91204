"""MustDrop against its description, stage by stage, and inside a wrapped LLaVA against the bare model taken apart."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llava, prompt
from oracle import embeddings, run
from standins import FACTS
from torch import Tensor

import tokenreduce as tr
from tokenreduce.kernels.window_similarity import window_similarity
from tokenreduce.layout import Layout
from tokenreduce.method import ModelFacts, Step
from tokenreduce.methods.mustdrop import KEY, ROLES, MustDrop, Route
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import decay, lengths
from tokenreduce.signals import AttentionReceived, ClsAttention, TextAttention
from tokenreduce.text_attention import attended, key_set, urgency
from tokenreduce.tokens import VisualTokens
from tokenreduce.window_merging import merged_windows, windows_to_merge

TOLERANCE = 3e-5  # float32 logits of size 5; batched and single matrix products round differently


def facts(**more: Any) -> ModelFacts:
    return ModelFacts(**(vars(FACTS) | more))


def step_of(method: MustDrop, stage: str, layer: int | None = None) -> Step:
    return next(s for s in method.plan(FACTS) if s.stage == stage and layer in (None, s.layer))


# ------------------------------------------------------------------ encoder


def described(alike: list[float], r: int, height: int, width: int, w: int) -> list[list[int]]:
    """Tokens of each row after the leading one, by Python lists: merged windows, then single patches."""
    across = width // w
    cells = [
        [(v // across * w + i) * width + v % across * w + j for i in range(w) for j in range(w)]
        for v in range(len(alike))
    ]
    chosen = sorted(range(len(alike)), key=lambda v: (-alike[v], v))[:r]
    gone = {c for v in chosen for c in cells[v]}
    return [cells[v] for v in chosen] + [[c] for c in range(height * width) if c not in gone]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    w=st.integers(2, 3),
    prefix=st.integers(0, 3),
    data=st.data(),
)
def test_merged_windows_equal_their_description(rows, columns, w, prefix, data) -> None:
    height, width, number = rows * w, columns * w, rows * columns
    values = st.lists(st.integers(0, 3), min_size=number, max_size=number)
    alike = [data.draw(values) for _ in range(2)]
    count = [data.draw(st.integers(0, number)) for _ in range(2)]
    assign, source, valid = merged_windows(torch.tensor(alike) / 4, torch.tensor(count), height, width, w, prefix)
    for b in range(2):
        expected = [[p] for p in range(prefix)]
        expected += [[c + prefix for c in row] for row in described(alike[b], count[b], height, width, w)]
        k = len(expected)
        assert k == prefix + height * width - count[b] * (w * w - 1)
        assert valid is None or valid[b].tolist() == [i < k for i in range(source.shape[1])]
        assert source[b, :k].tolist() == [max(row) for row in expected]  # the bottom-right token of a window
        found = [(assign[b] == r).nonzero().flatten().tolist() for r in range(k)]
        assert found == [sorted(row) for row in expected]
    assert (valid is None) == (count[0] == count[1])


def block0(x: Tensor, side: int, method: MustDrop) -> tuple[VisualTokens, Reduction]:
    step = step_of(method, "encoder")
    tokens = VisualTokens(x, Layout(side, side), step.stage, step.layer, prefix=1, amount=step.amount)
    return tokens, method.reduce(tokens).check(tokens)


def scenes(seed: int = 0) -> Tensor:
    """(3, 1 + 36, 8) with 0, 2 and 4 flat windows out of 4."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 6, 6, 8, generator=generator)
    flat = torch.randn(4, 8, generator=generator)
    for b, windows in enumerate(([], [1, 2], [0, 1, 2, 3])):
        for v in windows:
            x[b, v // 2 * 3 : v // 2 * 3 + 3, v % 2 * 3 : v % 2 * 3 + 3] = flat[v]
    return torch.cat([torch.randn(3, 1, 8, generator=generator), x.flatten(1, 2)], dim=1)


def test_each_image_merges_what_is_alike_in_it() -> None:
    x = scenes()
    method = MustDrop(mode="threshold", keep=192)
    _, plan = block0(x, 6, method)
    assert plan.valid is not None
    assert plan.valid.sum(dim=1).tolist() == [37, 37 - 16, 37 - 32]
    for b in range(3):
        _, alone = block0(x[b : b + 1], 6, method)
        assert alone.valid is None
        k = alone.num_kept
        assert torch.equal(plan.source[b, :k], alone.source[0])
        assert torch.equal(plan.assign[b], alone.assign[0])
    _, shared = block0(x[1:], 6, MustDrop(mode="threshold", keep=192, batch_min=True))
    assert shared.valid is None
    assert shared.num_kept == 21
    _, untouched = block0(x[:1], 6, method)
    assert torch.equal(untouched.assign, torch.arange(37)[None])


def test_merging_conserves_mass_and_is_constant_on_groups() -> None:
    x = scenes()[2:]
    _, plan = block0(x, 6, MustDrop(merge_to=13, keep=0.2))
    size = torch.bincount(plan.assign[0], minlength=plan.num_kept)
    assert size.tolist() == [1, 9, 9, *[1] * 18]  # 36 - 2 * 8 = 20 patches: the next below, 12, is too few
    merged = plan.carry(x)
    torch.testing.assert_close((merged * size[None, :, None]).sum(dim=1), x.sum(dim=1), rtol=0, atol=1e-4)
    torch.testing.assert_close(plan.carry(merged.gather(1, plan.assign[..., None].expand_as(x))), merged)


def test_a_tie_of_flat_windows_goes_to_the_first() -> None:
    x = torch.cat([torch.randn(1, 1, 8), torch.randn(1, 1, 8).expand(1, 36, 8)], dim=1)
    _, plan = block0(x, 6, MustDrop(merge_to=20, keep=0.4))
    assert plan.source[0, 1:3].tolist() == [1 + 14, 1 + 17]


def test_targets_are_reached_from_above() -> None:
    for target, left in ((576, 576), (570, 576), (568, 568), (300, 304), (64, 64), (1, 64)):
        method = MustDrop(merge_to=target, keep=192)
        assert 576 - 8 * windows_to_merge(576, target, method.window) == left


# ------------------------------------------------------------------ keys


def test_keys_are_the_most_attended_patches() -> None:
    score = torch.tensor([[0.1, 0.4, 0.4, 0.05, 0.05]])
    assert key_set(score, 0.08).tolist() == [[1]]
    assert key_set(score, 0.4).tolist() == [[1, 2]]
    assert key_set(torch.rand(2, 576), 0.08).shape == (2, 47)
    assert key_set(torch.rand(2, 25), 0.08).shape == (2, 2)  # 0.08 * 25 is 2, not a little more
    method = MustDrop(keep=192, mode="threshold")
    step = step_of(method, "projector")
    assert step.needs == (ClsAttention(23),)
    tokens = VisualTokens(torch.randn(2, 50, 3), Layout(24, 24), signals={step.needs[0]: torch.rand(2, 50)})
    tokens.amount = step.amount
    plan = method.reduce(tokens)
    assert plan.role_names == ROLES
    assert (plan.role == KEY).sum(dim=1).tolist() == [4, 4]
    assert torch.equal(plan.source, torch.arange(50).expand(2, -1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keep=st.integers(20, 500), rate=st.sampled_from([0.01, 0.08, 0.5, 1.0]))
def test_there_are_never_more_keys_than_tokens_in_the_end(keep, rate) -> None:
    method = MustDrop(keep=keep, key_rate=rate)
    planned = method.schedule(576, Route(32, True))
    step = step_of(method, "projector")
    n = planned[0]
    tokens = VisualTokens(
        torch.zeros(1, n, 1), Layout(24, 24), signals={step.needs[0]: torch.rand(1, n)}, amount=Route(32, True)
    )
    role = method.reduce(tokens).role
    assert role is not None
    assert 1 <= int((role == KEY).sum()) <= planned[-1]


# ------------------------------------------------------------------ filter


def at_layer(method: MustDrop, layer: int, total: Tensor, most: Tensor, role: Tensor) -> Reduction:
    step = step_of(method, "llm", layer)
    tokens = VisualTokens(
        torch.zeros(*total.shape, 1),
        Layout(24, 24),
        step.stage,
        step.layer,
        role=role,
        signals=dict(zip(step.needs, (total, most))),
        amount=step.amount,
    )
    return method.reduce(tokens).check(tokens)


def text_attention(batch: int, n: int, rows: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attention = torch.randn(batch, rows, n, generator=generator).mul(2).softmax(dim=-1)
    return attention.sum(dim=1), attention.amax(dim=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 40),
    theta_g=st.sampled_from([0.001, 0.02, 0.1, 1.0]),
    theta_i=st.sampled_from([0.001, 0.05, 0.3, 1.0]),
    keys=st.sets(st.integers(0, 39), min_size=1),
    seed=st.integers(0, 99),
)
def test_the_filter_equals_its_description(n, theta_g, theta_i, keys, seed) -> None:
    total, most = text_attention(3, n, seed=seed)
    role = torch.zeros(3, n, dtype=torch.long)
    role[:, sorted({j % n for j in keys})] = KEY
    method = MustDrop(keep=192, mode="threshold", global_threshold=theta_g, individual_threshold=theta_i)
    plan = at_layer(method, 3, total, most, role)
    assert plan.valid is not None
    for b in range(3):
        everything = float(total[b].sum())
        kept = [
            j
            for j in range(n)
            if role[b, j] == KEY or not (total[b, j] < theta_g * everything and most[b, j] < theta_i)
        ]
        assert plan.source[b, plan.valid[b]].tolist() == kept
        assert (plan.assign[b] >= 0).nonzero().flatten().tolist() == kept
        alone = at_layer(method, 3, total[b : b + 1], most[b : b + 1], role[b : b + 1])
        assert alone.source.tolist() == [kept]
    # being discarded is the same as an urgency below 1, up to rounding on the threshold itself
    urgent, kept = urgency(total, most, theta_g, theta_i), attended(total, most, theta_g, theta_i)
    clear = (urgent - 1).abs() > 1e-5
    assert torch.equal((urgent >= 1)[clear], kept[clear])


def test_keys_stay_when_the_text_looks_away() -> None:
    method = MustDrop(keep=192, mode="threshold", global_threshold=1.0, individual_threshold=1.0)
    role = torch.zeros(1, 9, dtype=torch.long)
    role[0, [2, 7]] = KEY
    for value in (torch.zeros(1, 9), torch.full((1, 9), 1e-9)):
        # a share of nothing is at least a share of nothing: only a row of zeros keeps all
        plan = at_layer(method, 3, value, value, role)
        assert plan.source.tolist() == [list(range(9)) if value.sum() == 0 else [2, 7]]
    assert Reduction.where(role == KEY).source.tolist() == [[2, 7]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keep=st.integers(16, 576), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_budgets_are_filled_exactly_at_every_layer(keep, batch, seed) -> None:
    method = MustDrop(keep=keep)
    planned = method.schedule(576, Route(32, True))
    n, role = planned[0], torch.zeros(batch, planned[0], dtype=torch.long)
    role[:, :: max(1, n // max(1, planned[-1] // 2))][:, : planned[-1]] = KEY
    if keep == 576:
        return
    for layer, k in zip((3, 7, 11, 15), planned[1:]):
        total, most = text_attention(batch, n, seed=seed + layer)
        plan = at_layer(method, layer, total, most, role)
        assert plan.valid is None
        assert plan.num_kept == k
        assert (plan.assign[role == KEY] >= 0).all()
        score = urgency(total, most, *method._thresholds(keep / 576)).masked_fill(role == KEY, torch.inf)
        for b in range(batch):
            best = sorted(range(n), key=lambda j: (-float(score[b, j]), j))[:k]
            assert plan.source[b].tolist() == sorted(best)
        n, role = k, role.gather(1, plan.source)


def test_equal_scores_go_to_the_lowest_index() -> None:
    method = MustDrop(keep=192)
    n = method.schedule(576, Route(32, True))[0]
    flat = torch.full((1, n), 1 / n)
    plan = at_layer(method, 3, flat, flat, torch.zeros(1, n, dtype=torch.long))
    assert torch.equal(plan.source[0], torch.arange(plan.num_kept))


# ------------------------------------------------------------------ schedule


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    first=st.integers(1, 600),
    share=st.floats(0.05, 1),
    runs=st.sampled_from([[2, 4, 4, 4, 18], [1, 2, 2, 2, 25], [0, 1, 1, 3], [5, 1]]),
)
def test_lengths_fall_geometrically_to_the_average(first, share, runs) -> None:
    least = (first * runs[0] + sum(runs[1:])) / sum(runs)
    goal = least + share * (first - least)
    found = lengths(first, goal, runs)
    assert found[0] == first
    assert all(b <= a for a, b in pairwise(found))
    assert found[-1] >= 1
    average = sum(run * n for run, n in zip(runs, found)) / sum(runs)
    assert abs(average - goal) * sum(runs) <= max(runs[1:]) / 2 + 1e-6
    q = decay(first, goal, runs)
    assert all(abs(n - max(1, first * q**i)) <= max(2.0, sum(runs) / 4) for i, n in enumerate(found))


def test_published_budgets() -> None:
    for keep, known in ((192, 1 / 3), (128, 2 / 9), (64, 1 / 9)):
        by_count, by_share = MustDrop(keep=keep), MustDrop(keep=known)
        found = by_count.schedule(576, Route(32, True))
        assert found == by_share.schedule(576, Route(32, True))
        assert sum(run * n for run, n in zip((2, 4, 4, 4, 18), found)) == keep * 32
        threshold = MustDrop(keep=keep, mode="threshold")._thresholds(None)
        assert threshold == MustDrop(keep=known, mode="threshold")._thresholds(None)
    assert MustDrop(keep=64, mode="threshold")._thresholds(None) == (0.011, 0.01)
    assert MustDrop(keep=0.12)._thresholds(0.12) == (0.011, 0.01)


def test_layers_scale_to_the_depth() -> None:
    assert MustDrop().pruning_layers(32) == (2, 6, 10, 14)
    assert MustDrop().pruning_layers(40) == (2, 8, 12, 18)
    assert MustDrop().pruning_layers(2) == (0,)
    assert MustDrop(layers=(1, 3)).pruning_layers(5) == (1, 3)


def test_it_asks_for_what_it_describes() -> None:
    found = MustDrop().plan(FACTS)
    assert [(s.stage, s.layer) for s in found] == [
        ("encoder", 0),
        ("projector", None),
        *(("llm", layer) for layer in (3, 7, 11, 15)),
        ("cache", 2),
    ]
    assert found[0].when == "after"
    assert not found[0].proportional
    assert found[1].needs == (ClsAttention(23),)
    assert found[3].needs == (TextAttention(6, "sum"), TextAttention(6, "max"))
    assert MustDrop(score="global_mean").plan(facts(has_cls=False))[1].needs == (AttentionReceived(23),)
    assert MustDrop().plan(facts(has_cls=False)) == MustDrop(score="global_mean").plan(facts(has_cls=False))
    pooled = facts(stages=("projector", "llm"))
    assert [s.stage for s in MustDrop().plan(pooled)] == ["projector", *["llm"] * 4]
    assert [
        clause.split(":")[0] for clause in MustDrop().substitutes(facts(stages=("projector", "llm"), has_cls=False))
    ] == [
        "attention received from all tokens in place of [CLS] attention",
        "no merging of windows",
        "no trimming of the cache",
    ]
    assert MustDrop().substitutes(FACTS) == ()
    assert [s.stage for s in MustDrop(merge=False, trim_cache=False).plan(FACTS)] == ["projector", *["llm"] * 4]


# ------------------------------------------------------------------ in a model


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


def test_a_dense_tower_needs_equal_counts(model) -> None:
    """Images that merge differently cannot share a pass through the tower; one by one, or at the least count, they can."""
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
        with pytest.raises(ValueError, match="different number of tokens per image in encoder block 0"):
            model(**inputs)
        alone = prompt(model, [1]) | {"pixel_values": inputs["pixel_values"][best.argmax() :][:1]}
        model(**alone)
        assert tr.report(model).tokens_at_layer[0][0] < 36
    with tr.wrapped(model, method, batch_min=True), torch.no_grad():
        model(**inputs)
        assert tr.report(model).tokens_at_layer[0] == [72]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"mode": "exact"}, ["mode='exact'", "'budget'", "'threshold'"]),
        ({"score": "text"}, ["score='text'", "'cls'", "'global_mean'"]),
        ({"output_order": "time"}, ["output_order='time'", "'raster'", "'reference'"]),
        ({"similarity": 2.0}, ["similarity=2.0", "[-1, 1]"]),
        ({"key_rate": 0.0}, ["key_rate=0.0", "(0, 1]", "0.08"]),
        ({"window": 1}, ["window=1", "an int >= 2", "3"]),
        ({"global_threshold": 0.0}, ["global_threshold=0.0", "(0, 1]"]),
        ({"individual_threshold": 1.5}, ["individual_threshold=1.5", "(0, 1]"]),
        ({"layers": (6, 2)}, ["layers=(6, 2)", "ascending ints >= 0", "(2, 6, 10, 14)"]),
        ({"layers": ()}, ["layers=()", "ascending"]),
        ({"merge_to": 0}, ["merge_to=0", "an int >= 1"]),
        ({"merge_to": 1.5}, ["merge_to=1.5", "(0, 1]"]),
        ({"keep": 100, "mode": "threshold"}, ["keep=100", "192, 128, 64", "1/3, 2/9", "mode='budget'"]),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"allowed|outside") as caught:
        MustDrop(**parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "about", "words"),
    [
        ({"score": "cls"}, {"has_cls": False}, ["no [CLS] token", "score='global_mean'"]),
        ({"merge": True}, {"stages": ("projector", "llm", "cache")}, ["does not offer", "merge=False"]),
        ({}, {"tower_grid": (16, 16)}, ["window=3", "16x16", "allowed: 2, 4, 8, 16", "window=2", "merge=False"]),
        ({}, {"tower_grid": (7, 9)}, ["7x9", "allowed: none", "merge=False"]),
        ({}, {"decoder_depth": 0}, ["needs a language model"]),
        ({"layers": (2, 31)}, {}, ["layers=(2, 31)", "0 to 30"]),
        ({"keep": 2}, {}, ["keep=2 of 576", "an average of 5 or more"]),
    ],
    ids=str,
)
def test_models_that_cannot_serve_it_are_refused(parameters, about, words) -> None:
    with pytest.raises(ValueError, match=r"mustdrop|layers|keep|window") as caught:
        MustDrop(**parameters).plan(facts(**about))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_tokens_that_are_no_grid_are_refused() -> None:
    tokens = VisualTokens(torch.randn(1, 30, 4), Layout(6, 6), "encoder", 0, prefix=1, amount=Route(32, True))
    with pytest.raises(ValueError, match=r"block 0 holds 29 tokens of a 6x6 grid.*merge=False"):
        MustDrop().reduce(tokens)
    tokens = VisualTokens(torch.randn(1, 17, 4), Layout(4, 4), "encoder", 0, prefix=1, amount=Route(32, True))
    with pytest.raises(ValueError, match=r"3x3 windows.*4x4 grid"):
        MustDrop().reduce(tokens)
