"""Methods that look at rows before the projector: what reaches the language model, against plain loops on the bare model."""

from __future__ import annotations

import pytest
import reduced
import torch
from models import llava, prompt
from reduced import entering
from torch import Tensor

import tokenreduce as tr
from tokenreduce import outlier_absorption, principal_groups
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.kernels.fingerprint import hash_normal
from tokenreduce.methods import vispruner, zoo_prune
from tokenreduce.projection import Projector, TwoLayers


@torch.no_grad()
def tower(model, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (M, 1 + N, C), head-averaged keys (M, 1 + N, d) and [CLS] rows (M, 1 + N) of the block of the features."""
    model = model.model
    keys = []
    block = model.vision_tower.encoder.layers[-2].self_attn
    handle = block.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
    out = model.vision_tower(pixels, output_hidden_states=True)
    handle.remove()
    heads = block.num_heads
    inside = model.vision_tower.encoder.layers[-2].layer_norm1(out.hidden_states[-3])
    query = block.q_proj(inside[:, :1]).unflatten(2, (heads, -1)).transpose(1, 2)
    split = keys[0].unflatten(2, (heads, -1))
    row = (query @ split.permute(0, 2, 3, 1) * block.scale).softmax(dim=-1).mean(dim=1)[:, 0]
    return out.hidden_states[-2], split.mean(dim=2), row


@pytest.mark.parametrize("merge", ["add_mean", "mean"])
@pytest.mark.parametrize("cls", [False, True])
def test_visionzip_hands_over_what_the_projector_makes_of_sums(cls, merge):
    model = llava()
    inputs = prompt(model, [1, 2], "left")
    hidden, keys, row = tower(model, inputs["pixel_values"])
    keep, dominant = 8, 7 - cls
    with tr.wrapped(model, "visionzip", keep=keep, contextual=0.125, merge=merge, forward_cls=cls):
        found, trace = entering(model, inputs)
    project = model.model.multi_modal_projector
    for image, x, k, a in zip(trace.images, hidden, keys, row, strict=True):
        patches, k = x[1:], torch.nn.functional.normalize(k[1:], dim=-1)
        best = sorted(sorted(range(16), key=lambda i: -a[1 + i])[:dominant])
        rest = [i for i in range(16) if i not in best]
        target = rest[0]
        members = [i for i in rest if i != target]
        joined = torch.stack([patches[i] for i in members]).mean(0)
        every = torch.stack([patches[i] for i in rest]).mean(0)
        made = patches[target] + joined if merge == "add_mean" else every
        rows = {i: patches[i] for i in best} | {target: made}
        places = sorted(rows)
        expected = torch.stack([rows[i] for i in places] + [x[0]] * cls)
        stage = image.stages[-1]
        assert stage.source.tolist() == places + [-1] * cls
        assert [stage.assign[i].item() for i in members] == [places.index(target)] * len(members)
        # rows stand in the order of their seats; the sample's other columns are as they were
        pad = int((inputs["attention_mask"][image.sample] == 0).sum())
        seats = stage.seats - pad
        before = [c for other in trace.images if other.sample == image.sample for c in other.columns.tolist()]
        left = [c for other in trace.images if other.sample == image.sample for c in other.stages[-1].seats.tolist()]
        width = int(inputs["attention_mask"][image.sample].sum()) - len(before) + len(left)
        start = found.shape[1] - width
        gone = sorted(set(before) - set(left))
        slots = [start + int(s) - sum(g - pad < int(s) for g in gone) for s in seats]
        torch.testing.assert_close(found[image.sample, slots], project(expected).detach(), atol=2e-4, rtol=1e-4)


def test_what_a_tower_lacks_is_named_or_refused():
    model = zoo.build("gemma3")
    for name in ("visionzip", "vispruner", "prunesid", "prumerge"):
        with tr.wrapped(model, name, keep=0.5), torch.no_grad():
            model(**zoo.inputs("gemma3", "single", model))
            assert any("[CLS]" in clause for clause in tr.report(model).substitutes), name
        with pytest.raises(ValueError, match="strict=True"):
            tr.wrap(model, name, keep=0.5, strict=True)
    for name in ("visionzip", "prunesid"):
        with pytest.raises(ValueError, match="forward_cls=False"):
            tr.wrap(model, name, keep=0.5, forward_cls=True)
    with pytest.raises(ValueError, match="variant='qwen'"):
        tr.wrap(model, "prunesid", keep=0.5, variant="clip")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("name", ["visionzip", "vispruner", "prunesid", "zoo_prune", "prumerge"])
def test_every_count_is_met_in_tiles_and_alone(name, count):
    for key in ("llava", "llava_next"):
        model = reduced.model(key)
        _, trace = reduced.forward(model, zoo.inputs(key, "mixed", model), tr.registry.make(name, keep=count))
        assert [len(image.kept()) for image in trace.images] == [min(count, i.tokens_in) for i in trace.images]


@pytest.mark.parametrize("name", ["visionzip", "prunesid", "prumerge"])
def test_the_released_order_is_renumbered(name):
    model = llava()
    inputs = prompt(model, [1])
    with tr.wrapped(model, name, keep=8, output_order="reference"):
        _, trace = entering(model, inputs)
        raster = sorted(n for n in trace.images[0].kept().tolist() if n >= 0)
        assert trace.images[0].kept().tolist() != raster
    with tr.wrapped(model, name, keep=8):
        _, trace = entering(model, inputs)
        assert [n for n in trace.images[0].kept().tolist() if n >= 0] == raster


# ------------------------------------------------------------------ counts that follow the content


def test_outliers_decide_how_many_tokens_an_image_keeps():
    score = torch.full((3, 40), 0.1) + torch.arange(40) * 1e-3
    score[1, [5, 9]] = 1.0
    score[2, [1, 2, 3, 30]] = 2.0
    order, count = outlier_absorption.by_outliers(score)
    assert count.tolist() == [1, 2, 4]
    assert sorted(order[1, :2].tolist()) == [5, 9]
    for b, m in enumerate((1, 2, 4)):
        plus, more = (x[b] for x in outlier_absorption.by_outliers(score, plus=True))
        step = max(1, int(1 / (m / 40)) // 3)
        grid = [i for i in range(0, 39, step) if i not in plus[:m].tolist()]
        assert plus[m : int(more)].tolist() == grid


@pytest.mark.parametrize("k", [1, 3, 8, 15])
def test_a_number_of_tokens_is_half_outliers_and_half_grid(k):
    score = torch.rand(2, 25, generator=torch.Generator().manual_seed(2))
    score[0, [3, 12]] = 40.0
    score[1, :5] = 40.0
    order, count = outlier_absorption.by_count(score, k, plus=True)
    assert count.tolist() == [k, k]
    for b, outliers in enumerate((2, 5)):
        m = min(outliers, (k + 1) // 2)
        first = sorted(range(25), key=lambda i: -score[b, i])
        wanted = set(first[:m]) | {int((i + 0.5) * 25 / (k - m)) for i in range(k - m)}
        more = [i for i in first if i not in wanted]
        assert set(order[b, :k].tolist()) == wanted | set(more[: k - len(wanted)])


@pytest.mark.parametrize("keep", ["auto", "auto:4-6", "auto:-2", "auto:0.5-"])
@pytest.mark.parametrize("key", ["llava", "llava_next", "qwen2_5_vl"])
def test_counts_that_follow_the_content_are_those_of_each_picture_alone(key, keep):
    model = reduced.model(key)
    case = zoo.case(key, "mixed", model)
    budget = tr.Budget(keep)
    with tr.wrapped(model, "prumerge", keep=keep), torch.no_grad():
        together = model(**case.inputs).logits
        report, trace = tr.report(model), tr.trace(model)
        for b, real in enumerate(case.inputs["attention_mask"].bool()):
            torch.testing.assert_close(together[b][real], model(**zoo.alone(key, case, b)).logits[0], atol=1e-4, rtol=0)
            assert tr.report(model).tokens_kept[0] == report.tokens_kept[b]
    assert [n for row in report.tokens_kept for n in row] == [len(image.kept()) for image in trace.images]
    for image in trace.images:
        n = image.tokens_in
        assert budget.least(n) <= len(image.kept()) <= budget.count(n)


def test_budgets_that_adapt_say_what_is_allowed():
    assert tr.Budget("auto").count(100) == 100
    assert tr.Budget("auto").least(100) == 1
    assert tr.Budget("auto:16-0.5").bounds == (tr.Budget(16), tr.Budget(0.5))
    assert tr.Budget("auto:16-64").limit(torch.tensor([3, 30, 300]), 576).tolist() == [16, 30, 64]
    for wrong in ("most", "auto:", "auto:9-3", "auto:0-3", "auto:1.5-"):
        with pytest.raises((ValueError, TypeError), match=r"allowed|outside"):
            tr.Budget(wrong)
    with pytest.raises(ValueError, match=r"keep='auto', but it keeps a number that you give.*prumerge"):
        tr.FasterVLM(keep="auto")
    assert tr.registry.make("prumerge").keep == "auto"


def test_a_budget_that_adapts_is_text_on_the_command_line_and_in_recipes():
    from tokenreduce.cli.arguments import chosen_methods
    from tokenreduce.eval.recipe import Recipe

    assert chosen_methods(["prumerge:auto:16-128"], None, [], None, [])[0].keep == "auto:16-128"
    assert chosen_methods(["prumerge"], "auto", ["plus=true"], None, [])[0].plus
    assert Recipe.of("prumerge:auto").keep == "auto"
    model = llava()
    with tr.wrapped(model, "prumerge", keep=4), tr.budget(model, keep="auto:2-3"):
        _, trace = entering(model, prompt(model, [1]))
        assert 2 <= len(trace.images[0].kept()) <= 3


# ------------------------------------------------------------------ the mathematics, where vectors do not reach


def test_the_derivative_stands_for_the_difference():
    generator = torch.Generator().manual_seed(0)
    w1, b1, w2 = (torch.randn(*shape, generator=generator) for shape in ((12, 6), (12,), (9, 12)))
    act = torch.nn.functional.gelu

    def run(x):
        return act(x @ w1.T + b1) @ w2.T

    rows = torch.randn(2, 5, 6, generator=generator)
    pushes = hash_normal(torch.arange(16), 6, 0)
    two = zoo_prune.sensitivity(rows, pushes, Projector(run, TwoLayers(w1, b1, act, w2, None)))
    slope = zoo_prune.sensitivity(rows, pushes, Projector(run))
    torch.testing.assert_close(two, slope, rtol=1e-3, atol=1e-4)
    moved = torch.ones(1, 5)
    assert zoo_prune.select(rows[:1], moved, 5).sort().values.tolist() == [[0, 1, 2, 3, 4]]


def test_normal_numbers_are_normal_and_depend_on_key_and_seed_only():
    x = hash_normal(torch.arange(64), 512, 0)
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02
    assert torch.equal(x[5:6], hash_normal(torch.tensor([5]), 512, 0))
    assert not torch.equal(x, hash_normal(torch.arange(64), 512, 1))


def test_look_alikes_are_dropped_round_by_round():
    generator = torch.Generator().manual_seed(1)
    for n, k, ratio, step in ((11, 4, 0.5, 8), (9, 2, 0.0, 3), (12, 7, 0.75, 1), (6, 5, 1.0, 8)):
        score, x = torch.rand(1, n, generator=generator), torch.randn(1, n, 5, generator=generator)
        unit = torch.nn.functional.normalize(x[0], dim=-1)
        order = sorted(range(n), key=lambda i: -score[0, i])
        first = int(k * ratio)
        rest = order[first:]
        while k > first and len(rest) > k - first:
            drop = min(step, len(rest) - (k - first), len(rest) // 2)
            a, b = rest[::2], rest[1::2]
            a.sort(key=lambda i: -max(float(unit[i] @ unit[j]) for j in b))
            rest = a[drop:] + b
        found = vispruner.select(score, x, k, ratio, step)
        assert found[0][0].tolist() == order[:first]
        assert sorted(found[1][0].tolist()) == sorted(rest if k > first else [])


@torch.no_grad()
def test_tiles_share_the_budget_or_compete_for_it(monkeypatch):
    model, seen = reduced.model("llava_next"), []
    choose = vispruner.select
    monkeypatch.setattr(vispruner, "select", lambda score, *rest: seen.append(score.shape[1]) or choose(score, *rest))
    inputs = zoo.inputs("llava_next", "mixed", model)
    for unit in ("tile", "image"):
        seen.clear()
        with tr.wrapped(model, tr.VisPruner(keep=0.4, unit=unit)):
            model(**inputs)
            trace = tr.trace(model)
        whole = {len(image.columns) for image in trace.images}
        assert [len(image.kept()) for image in trace.images] == [round(0.4 * len(i.columns)) for i in trace.images]
        assert set(seen) == whole if unit == "image" else max(seen) < min(whole)
    with pytest.raises(ValueError, match="unit='frame'; allowed: 'tile', 'image'"):
        tr.VisPruner(unit="frame")


def test_quotas_are_met_and_suppressed_tokens_come_back():
    for left, size, k, cls in (([3, 1, 5], [9, 1, 10], 12, 0), ([1, 1, 1], [7, 8, 5], 16, 1), ([0, 4], [2, 30], 8, 0)):
        got = principal_groups.quotas(left, size, k, cls)
        assert sum(got) == k - cls
        assert all(0 <= g <= n for g, n in zip(got, size))
        assert all(g >= 1 for g, n in zip(got, size) if n)


def one_after_the_other(similar, rank, group, limit):
    taken = torch.zeros_like(rank, dtype=torch.bool)
    for b in range(len(rank)):
        waits = rank[b] > 0
        for i in rank[b].sort(descending=True, stable=True).indices.tolist():
            if waits[i]:
                taken[b, i] = True
                waits &= ~((similar[b, i] > limit[b]) & (group[b] == group[b, i]))
    return taken


@pytest.mark.parametrize("seed", range(20))
def test_groups_suppressed_side_by_side_equal_one_token_after_the_other(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 60, (1,), generator=generator))
    unit = torch.nn.functional.normalize(torch.randn(3, n, 4, generator=generator), dim=2)
    rank = (torch.rand(3, n, generator=generator) * 6).round() / 6 - 0.2 * (seed % 2)  # ties, and some below 0
    group = torch.randint(0, min(5, n), (3, n), generator=generator)
    limit = torch.rand(3, generator=generator) * 1.5  # above 1: nothing is set aside
    given = (unit @ unit.mT, rank, group, limit)
    assert torch.equal(principal_groups.suppressed(*given), one_after_the_other(*given))
