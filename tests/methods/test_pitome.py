"""PiToMe: matchings against the recipe written out, presets, counts through whole towers, and wrapped models."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import models
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from standins import FACTS, alone, random
from torch import Tensor

import tokenreduce as tr
from tokenreduce.energy_merging import PRESETS, Merge, merges, spread_by_share
from tokenreduce.layout import Layout
from tokenreduce.matching import MATCHINGS, Pairs, by_energy, match, match_energy, match_energy_bsm, match_text
from tokenreduce.method import ModelFacts
from tokenreduce.methods.pitome import PiToMe
from tokenreduce.reduction import Reduction
from tokenreduce.registry import make
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens


def shown(x: Tensor, amount: Any, prefix: int, keys: Tensor | None = None, size: Tensor | None = None) -> VisualTokens:
    return VisualTokens(
        features=x,
        layout=Layout(1, x.shape[1] - prefix),
        stage="encoder",
        layer=0,
        size=size,
        signals={} if keys is None else {Keys(0): keys},
        prefix=prefix,
        amount=amount,
    )


def sizes(plan: Reduction, size: Tensor) -> Tensor:
    return torch.zeros(plan.source.shape).scatter_add_(1, plan.assign.clamp_min(0), size * (plan.assign >= 0))


def paired(metric: Tensor, r: int, matching: str, prefix: int = 0, margin: float = 0.5) -> Pairs:
    if matching == "bsm":
        return match(metric, r, prefix)
    return (match_energy if matching == "energy" else match_energy_bsm)(metric, r, margin, 1.0, prefix)


# ------------------------------------------------------------------ matching


def recipe(metric: Tensor, r: int, margin: float, alpha: float, prefix: int) -> tuple[list[int], list[int]]:
    """Energy matching by hand for one image: anchors of the output rows, and the row of every token."""
    unit = (metric.double() / metric.double().norm(dim=-1, keepdim=True)).tolist()
    patches = range(prefix, len(unit))
    cosine = {(i, j): sum(x * y for x, y in zip(unit[i], unit[j])) for i in patches for j in patches}

    def f(w: float) -> float:
        return w - margin if w > margin else alpha * math.expm1(w - margin)

    energy = {i: sum(f(cosine[i, j]) for j in patches) / len(patches) for i in patches}
    order = sorted(patches, key=lambda i: (-energy[i], i))
    a, b, protected = order[0 : 2 * r : 2], order[1 : 2 * r : 2], order[2 * r :]
    joined = {i: max(b, key=lambda j, i=i: cosine[i, j]) for i in a}
    anchors = [*range(prefix), *protected, *b]
    place = {row: k for k, row in enumerate(anchors)}
    return anchors, [place[joined.get(i, i)] for i in range(len(unit))]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    patches=st.integers(3, 30),  # of two, the energies tie
    part=st.floats(0, 1),
    margin=st.floats(0, 0.9),
    alpha=st.floats(0.1, 2),
    seed=st.integers(0, 999),
)
def test_energy_matching_is_the_recipe(prefix, patches, part, margin, alpha, seed) -> None:
    r = max(1, round(part * (patches // 2)))
    metric = random(2, prefix + patches, 6, seed=seed)
    plan = match_energy(metric, r, margin, alpha, prefix).merge(prefix)
    for b in range(2):
        anchors, assign = recipe(metric[b], r, margin, alpha, prefix)
        assert plan.source[b].tolist() == anchors
        assert plan.assign[b].tolist() == assign


def clusters(*members: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """(1, N, C): clusters of the given sizes around orthogonal centres."""
    centres = torch.eye(len(members)).repeat_interleave(torch.tensor(members), dim=0)[None]
    return centres + noise * random(*centres.shape, seed=seed)


def test_only_large_clusters_merge() -> None:
    pairs = match_energy(clusters(1, 6, 1, 2), r=3, margin=0.5)
    assert sorted([*pairs.leaving[0].tolist(), *pairs.hubs[0].tolist()]) == [1, 2, 3, 4, 5, 6]
    assert pairs.alone.tolist() == [[8, 9, 0, 7]]  # the pair before the isolated ones, falling energy


def test_the_text_variant_splits_candidates_in_halves() -> None:
    metric = clusters(4, 3, 1, noise=0.05)
    energetic = match_text(metric, r=2, margin=0.5)
    assert sorted([*energetic.leaving[0].tolist(), *energetic.hubs[0].tolist()]) == [0, 1, 2, 3]
    assert torch.equal(
        match_text(torch.cat([torch.ones(1, 2, 3), metric], dim=1), 2, 0.5, prefix=2).hubs, energetic.hubs + 2
    )


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(patches=st.integers(2, 60), part=st.floats(0, 1), seed=st.integers(0, 99))
def test_mass_is_conserved_and_nothing_is_dropped(matching, prefix, patches, part, seed) -> None:
    r = max(1, round(part * (patches // 2)))
    x, keys = random(3, prefix + patches, 5, seed=seed), random(3, prefix + patches, 4, seed=seed + 1)
    size = torch.randint(1, 9, x.shape[:2], generator=torch.Generator().manual_seed(seed)).float()
    for weighted in (True, False):
        tokens = shown(x, Merge(r, matching, 0.5, weighted), prefix, keys, size)
        plan = PiToMe(r=r).reduce(tokens).check(tokens)
        assert plan.num_kept == prefix + patches - r
        assert (plan.assign >= 0).all()
        weight = size if weighted else torch.ones_like(size)
        merged, after = plan.carry(x), sizes(plan, weight)
        torch.testing.assert_close(
            (merged * after[..., None]).sum(dim=1), (x * weight[..., None]).sum(dim=1), rtol=1e-5, atol=1e-4
        )
        assert torch.equal(sizes(plan, size).sum(dim=1), size.sum(dim=1))
        assert torch.equal(plan.assign.gather(1, plan.source), torch.arange(plan.num_kept).expand_as(plan.source))
        assert torch.equal(plan.source[:, :prefix], torch.arange(prefix).expand(3, -1))
        assert (plan.assign[:, prefix:] >= prefix).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(patches=st.integers(2, 40), seed=st.integers(0, 99))
def test_prune_drops_what_would_have_merged(patches, seed) -> None:
    r = patches // 2
    x = random(2, 1 + patches, 5, seed=seed)
    tokens = shown(x, Merge(r), 1)
    merged, pruned = (PiToMe(r=r, prune=p).reduce(tokens).check(tokens) for p in (False, True))
    assert torch.equal(pruned.source, merged.source)
    assert (pruned.assign < 0).sum(dim=1).tolist() == [r, r]
    assert torch.equal(pruned.assign.clamp_min(-1), torch.where(pruned.assign < 0, -1, merged.assign))
    assert torch.equal(pruned.carry(x), x.gather(1, pruned.source[..., None].expand(-1, -1, 5)))


def groups(pairs: Pairs, order: Tensor) -> set[frozenset[int]]:
    """Groups of one image, in the numbering that ``order`` (N,) maps to."""
    assign = pairs.merge(0).assign[0]
    return {frozenset(order[assign == row].tolist()) for row in assign.unique()}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(4, 60), seed=st.integers(0, 99))
def test_energy_does_not_depend_on_the_order_of_the_tokens(n, seed) -> None:
    metric = random(1, n, 6, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for matching in ("energy", "energy_bsm"):
        moved = groups(paired(metric[:, order], n // 3 or 1, matching), order)
        assert moved == groups(paired(metric, n // 3 or 1, matching), torch.arange(n))


def test_plain_matching_depends_on_the_order_of_the_tokens() -> None:
    metric, order = random(1, 40, 6), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert groups(paired(metric[:, order], 10, "bsm"), order) != groups(paired(metric, 10, "bsm"), torch.arange(40))


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_a_batch_equals_its_images(matching, prefix) -> None:
    metric = random(4, prefix + 51, 16)
    metric[:, -20:] = metric[:, -40:-20]  # exact ties, too
    together = paired(metric, 13, matching, prefix)
    for b in range(4):
        for one, all_ in zip(paired(metric[b : b + 1], 13, matching, prefix), together):
            assert torch.equal(one[0], all_[b])


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_decides_like_float32_on_the_same_numbers(dtype, matching) -> None:
    """576 clustered tokens, whose energies differ by less than half precision can tell."""
    centres = random(1, 12, 64)[:, torch.arange(576) % 12]
    x = (centres + 0.1 * random(1, 576, 64, seed=1)).to(dtype)
    amount = Merge(57, matching, 0.9)
    half, full = (PiToMe(r=57).reduce(shown(y, amount, 0)) for y in (x, x.float()))
    assert torch.equal(half.assign, full.assign)
    assert torch.equal(half.carry(x), full.carry(x.float()).to(dtype))


@pytest.mark.parametrize("rows", ["constant", "zero"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_ties_go_to_the_lowest_index(rows, prefix) -> None:
    metric = torch.full((2, prefix + 12, 4), 0.5 if rows == "constant" else 0.0)
    pairs = match_energy(metric, 3, 0.5, prefix=prefix)
    assert (pairs.leaving - prefix).tolist() == [[0, 2, 4]] * 2
    assert (pairs.hubs - prefix).tolist() == [[1, 3, 5]] * 2
    assert (pairs.joined - prefix).tolist() == [[1, 1, 1]] * 2
    assert (pairs.alone - prefix).tolist() == [list(range(6, 12))] * 2
    sorted_pairs = match_energy_bsm(metric, 3, 0.5, prefix=prefix)
    assert (sorted_pairs.leaving - prefix).tolist() == [[0, 2, 4]] * 2


def test_sizes_weigh_the_mean_where_asked() -> None:
    x = torch.tensor([[[1.0], [4.0]]])
    size = torch.tensor([[1.0, 2.0]])
    for weighted, mean in ((True, 3.0), (False, 2.5)):
        plan = PiToMe(r=1).reduce(shown(x, Merge(1, weighted=weighted), 0, torch.ones(1, 2, 3), size))
        assert plan.carry(x).item() == mean


# ------------------------------------------------------------------ counts


def left(facts: ModelFacts, method: PiToMe, rows: int | None = None) -> int:
    """Patches that leave the tower, from the plan and the counting rule alone."""
    n = math.prod(facts.tower_grid or ()) if rows is None else rows
    for step in method.plan(facts):
        how = step.amount
        assert isinstance(how, Merge)
        n -= merges(n, how, min(facts.tower_prefix, 1), how.matching) if how < 1 else int(how)
    return n


@pytest.mark.parametrize(
    ("rho", "patches"), [(0.975, 330), (0.95, 183), (0.925, 101), (0.9, 54), (0.875, 30), (0.85, 17)]
)
def test_counts_of_the_released_llava_wiring(rho, patches) -> None:
    assert left(FACTS, PiToMe(rho=rho)) == patches
    steps = PiToMe(keep=patches).plan(FACTS)
    assert len(steps) == 23
    assert left(FACTS, PiToMe(keep=patches)) == patches
    # nearly the same rho is found again
    n = 576
    for step in steps:
        assert abs(step.amount - merges(n, rho, 1, step.amount.matching)) <= 2
        n -= int(step.amount)


@pytest.mark.parametrize(("rho", "patches"), [(0.975, 388), (0.95, 199), (0.925, 102), (0.9, 52)])
def test_counts_of_a_siglip_tower(rho, patches) -> None:
    facts = dataclasses.replace(FACTS, tower_depth=26, feature_block=25, tower_prefix=0, tower_grid=(27, 27))
    assert left(facts, PiToMe(rho=rho)) == patches


@pytest.mark.parametrize(("rho", "rows"), [(0.975, 151), (0.95, 111), (0.925, 82), (0.9, 60)])
def test_counts_of_a_vit(rho, rows) -> None:
    assert 1 + left(alone(196, depth=12), PiToMe(rho=rho)) == rows


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("preset", PRESETS)
def test_counts_are_exact_for_every_size(preset, prefix) -> None:
    for n in range(1, 301, 3 if (preset, prefix) == ("llava", 1) else 37):
        for keep in (1, n // 3 or 1, n - 1 or 1, n, 0.1, 0.5, 1.0):
            wanted = keep if isinstance(keep, int) else max(1, round(keep * n))
            assert left(alone(n, 9, prefix), PiToMe(keep=keep, preset=preset)) == wanted


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 200), part=st.floats(0, 1), depth=st.integers(1, 12), cls=st.integers(0, 1))
def test_the_share_is_the_best_one(n, part, depth, cls) -> None:
    """No share on a fine grid leaves fewer patches, but at least K, than the one that was found."""
    k = max(math.ceil(n / 2**depth), round(part * n))
    matchings = ["bsm"] * (depth // 2) + ["energy"] * (depth - depth // 2)
    counts = spread_by_share(n, k, cls, matchings)
    assert sum(counts) == n - k

    def simulate(share: float) -> list[int]:
        now, found = n, []
        for matching in matchings:
            found.append(merges(now, share, cls, matching))
            now -= found[-1]
        return found

    tried = [simulate(share) for share in torch.linspace(0.45, 1, 400).tolist()]
    best = max((c for c in tried if n - sum(c) >= k), key=sum)
    if sum(best) == n - k:
        assert sum(counts[:-1]) == sum(best[:-1])
    assert min(counts) >= 0


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(n=st.integers(1, 150), part=st.floats(0, 1), prefix=st.integers(0, 5), seed=st.integers(0, 9))
def test_a_tower_ends_with_the_count(preset, n, part, prefix, seed) -> None:
    k = max(math.ceil(n / 16), round(part * n))
    method = PiToMe(keep=k, preset=preset)
    x = random(2, prefix + n, 4, seed=seed)
    size = torch.ones(x.shape[:2])
    for step in method.plan(alone(n, 4, prefix)):
        keys = dict.fromkeys(step.needs, x)
        tokens = dataclasses.replace(shown(x, step.amount, prefix, size=size), layer=step.layer, signals=keys)
        plan = method.reduce(tokens).check(tokens)
        x, size = plan.carry(x), sizes(plan, size)
    assert x.shape[1] == prefix + k
    assert size.sum(dim=1).tolist() == [prefix + n] * 2


def test_the_count_is_rounded_as_written() -> None:
    assert merges(10, 0.9, 0, "energy") == math.floor(10 - 10 * 0.9)
    assert merges(100, 0.93, 0, "energy") == math.floor(100 - 100 * 0.93) != round(100 * (1 - 0.93)) + 1
    assert merges(19, 0.95, 1, "bsm") == 1
    assert merges(19, 0.95, 1, "energy") == 0
    assert merges(10, 0.2, 0, "energy") == 5


def test_shares_are_counted_when_tokens_are_seen() -> None:
    facts = dataclasses.replace(FACTS, tower_grid=None)
    (step, *_) = PiToMe(rho=0.9, preset="keys").plan(facts)
    for n in (10, 31, 64):
        x = random(1, 1 + n, 4)
        assert PiToMe(rho=0.9).reduce(shown(x, step.amount, 1, x)).num_kept == 1 + n - math.floor(n - n * 0.9)
    x = random(1, 1 + 5, 4)
    few = PiToMe(rho=0.9).reduce(shown(x, step.amount, 1, x))
    assert torch.equal(few.carry(x), x)


def test_shares_and_counts_per_block() -> None:
    assert [float(s.amount) for s in PiToMe(rho=[1.0, 0.9, 1, 0.8]).plan(FACTS)] == [0.9, 0.8]
    assert [s.layer for s in PiToMe(rho=[1.0, 0.9, 1, 0.8]).plan(FACTS)] == [1, 3]
    assert [(s.layer, s.amount) for s in PiToMe(r=[0, 7]).plan(FACTS)] == [(1, 7)]
    assert [s.layer for s in PiToMe(r=3).plan(FACTS)] == list(range(23))


def test_nothing_to_merge_attaches_nothing() -> None:
    for method in (
        PiToMe(keep=1.0),
        PiToMe(keep=576),
        PiToMe(rho=1.0),
        PiToMe(rho=[1, 1.0]),
        PiToMe(r=0),
        PiToMe(r=[]),
    ):
        assert method.plan(FACTS) == ()
        assert method.is_identity(576)
    for method in (PiToMe(), PiToMe(keep=64), PiToMe(rho=0.9), PiToMe(rho=[1, 0.9]), PiToMe(r=1)):
        assert method.plan(FACTS)
        assert not method.is_identity(576)


# ------------------------------------------------------------------ presets and switches


def plan_of(**parameters: Any) -> list[tuple[Any, ...]]:
    """Per block of a tower of depth 4 in which every block merges: what the step says."""
    steps = PiToMe(r=2, **parameters).plan(alone(64, 4))
    return [
        (s.amount.matching, round(s.amount.margin, 6), s.amount.weighted, s.when, bool(s.needs), s.proportional)
        for s in steps
    ]


@pytest.mark.parametrize(
    ("preset", "matchings", "margins", "weighted", "when", "keys", "proportional"),
    [
        ("llava", ["bsm", "bsm", "bsm", "energy"], [0.9, 0.675, 0.45, 0.225], False, "after", False, False),
        ("keys", ["energy"] * 4, [0.9, 0.675, 0.45, 0.225], True, "middle", True, True),
        ("keys_bsm", ["energy_bsm"] * 4, [0.9, 0.675, 0.45, 0.225], True, "middle", True, True),
        ("deit", ["energy_bsm"] * 2 + ["energy"] * 2, [0.75, 0.5625, 0.375, 0.1875], True, "middle", True, False),
        ("mae", ["energy"] * 2 + ["energy_bsm"] * 2, [0.75, 0.5625, 0.375, 0.1875], True, "middle", True, False),
        ("aug", ["energy_bsm"] * 2 + ["energy"] * 2, [0.9, 0.675, 0.45, 0.225], True, "middle", True, False),
        ("blip", ["energy"] * 4, [0.9, 0.675, 0.45, 0.225], True, "middle", False, False),
        ("blip2", ["energy"] * 4, [0.75, 0.65, 0.55, 0.45], True, "middle", True, True),
        ("clip", ["energy"] * 4, [0.95, 0.7125, 0.475, 0.2375], True, "middle", False, False),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_presets(preset, matchings, margins, weighted, when, keys, proportional) -> None:
    assert plan_of(preset=preset) == [(m, x, weighted, when, keys, proportional) for m, x in zip(matchings, margins)]


def test_the_preset_follows_the_model() -> None:
    assert plan_of() == plan_of(preset="keys_bsm")
    assert [s.amount.matching for s in PiToMe(r=1).plan(FACTS)] == ["bsm"] * 13 + ["energy"] * 10
    assert {s.when for s in PiToMe(r=1).plan(FACTS)} == {"after"}


def test_every_switch_works_on_its_own() -> None:
    base = plan_of(preset="llava")
    assert [row[4] for row in plan_of(preset="llava", metric="keys")] == [True] * 4
    assert [row[3] for row in plan_of(preset="llava", when="middle")] == ["middle"] * 4
    assert [row[2] for row in plan_of(preset="llava", size_weighted=True)] == [True] * 4
    assert [row[5] for row in plan_of(preset="llava", prop_attn=True)] == [True] * 4
    assert [row[0] for row in plan_of(preset="llava", matching="energy_bsm")] == ["energy_bsm"] * 4
    assert [row[0] for row in plan_of(preset="llava", matching=["bsm", "energy"])] == ["bsm", *["energy"] * 3]
    assert [row[1] for row in plan_of(preset="llava", m0=0.4)] == [0.4, 0.3, 0.2, 0.1]
    assert [row[1] for row in plan_of(preset="llava", m0=0.4, fall=0.0)] == [0.4] * 4
    assert [row[1] for row in plan_of(preset="blip2", fall=0.2)] == [0.75, 0.7, 0.65, 0.6]
    assert plan_of(preset="llava", metric="features", when="after", size_weighted=False, prop_attn=False) == base


def test_alpha_changes_the_energy() -> None:
    x = random(1, 40, 6)
    steep, flat = (PiToMe(r=10, alpha=a).reduce(shown(x, Merge(10, margin=0.3), 0)).assign for a in (1.0, 0.0))
    assert not torch.equal(steep, flat)


def test_what_a_step_carries_survives_copies() -> None:
    merge = Merge(7, "bsm", 0.25, False)
    for same in (copy.deepcopy(merge), pickle.loads(pickle.dumps(merge))):
        assert (same, same.matching, same.margin, same.weighted) == (7, "bsm", 0.25, False)


@pytest.mark.parametrize(
    ("parameters", "policy"),
    [({}, "keep"), ({"positions": "renumber"}, "renumber"), ({"output_order": "reference"}, "renumber")],
    ids=str,
)
def test_position_ids_follow_the_output_order(parameters, policy) -> None:
    x = random(1, 9, 4)
    for prune in (False, True):
        assert PiToMe(r=2, prune=prune, **parameters).reduce(shown(x, Merge(2), 1)).positions == policy


# ------------------------------------------------------------------ wrapped models


@pytest.mark.parametrize("preset", ["keys", "llava", "deit"])
def test_a_wrapped_vit(preset) -> None:
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5
    ).eval()
    images = random(2, 3, 32, 32)
    with torch.no_grad():
        bare = model(images)
        with tr.wrapped(model, "pitome", rho=1.0):
            assert torch.equal(model(images), bare)
        with tr.wrapped(model, "pitome", keep=11, preset=preset):
            merged = model(images)
            assert tr.report(model).tokens_kept == [[11], [11]]
            for b in range(2):
                torch.testing.assert_close(model(images[b : b + 1])[0], merged[b], rtol=1e-4, atol=1e-5)
        assert torch.equal(model(images), bare)
    assert not torch.allclose(merged, bare, atol=1e-4)


@pytest.mark.parametrize("order", ["raster", "reference"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_wrapped_llava(tower, order) -> None:
    model = models.llava(tower, grid=6)
    inputs = models.prompt(model, [1, 2], pad="left")
    with tr.wrapped(model, "pitome", keep=7, output_order=order), torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
        assert [image.reached(0).source.numel() for image in tr.trace(model).images] == [7, 7, 7]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("parameters", "kind", "words"),
    [
        ({"keep": 0}, ValueError, "keep=0 tokens per image; allowed: an int >= 1"),
        ({"keep": 0.5, "rho": 0.9}, ValueError, "keep=0.5 and rho=0.9 both set the number of tokens; give one"),
        ({"rho": 0.9, "r": 3}, ValueError, "rho=0.9 and r=3 both set the number of tokens; give one"),
        ({"rho": 0.0}, ValueError, r"rho=0.0; allowed: the share kept per block, in \(0, 1\]"),
        ({"rho": 1.1}, ValueError, r"rho=1.1; allowed"),
        ({"rho": [0.9, 2]}, ValueError, r"rho=\[0.9, 2\]; allowed"),
        ({"rho": "0.9"}, ValueError, r"rho='0.9'; allowed"),
        ({"rho": True}, ValueError, r"rho=True; allowed"),
        ({"r": -1}, TypeError, "r=-1; allowed: an int >= 0"),
        ({"r": (8, -1.0)}, TypeError, r"r=\(8, -1.0\); allowed: an int >= 0 .* or a list"),
        ({"preset": "qwen"}, ValueError, "preset='qwen'; allowed: None, 'llava', 'keys'"),
        ({"metric": "values"}, ValueError, "metric='values'; allowed: None, 'keys', 'features'"),
        ({"when": "before"}, ValueError, "when='before'; allowed: None, 'middle', 'after'"),
        ({"matching": "tome"}, ValueError, "matching='tome'; allowed: None, 'energy', 'energy_bsm', 'bsm'"),
        ({"matching": ["bsm", "tome"]}, ValueError, "matching='tome'; allowed"),
        ({"matching": []}, ValueError, r"matching=\[\]; allowed"),
        ({"m0": 1.5}, ValueError, r"m0=1.5 is outside \[-1, 1\]"),
        ({"fall": -0.1}, ValueError, r"fall=-0.1 is outside \[0, 2\]"),
        ({"alpha": -1.0}, ValueError, r"alpha=-1.0 is outside \[0, inf\]"),
        ({"output_order": "random"}, ValueError, "output_order='random'; allowed: 'raster', 'reference'"),
        ({"margin": 0.5}, TypeError, "pitome has no parameter 'margin'"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(parameters, kind, words) -> None:
    with pytest.raises(kind, match=words):
        make("pitome", **parameters)


def test_what_a_tower_cannot_do_is_refused_when_planning() -> None:
    for parameters in ({"rho": [0.9] * 25}, {"matching": ["bsm"] * 25}):
        with pytest.raises(ValueError, match=r"has 25 entries for the 24 blocks of this tower; give at most 24"):
            PiToMe(**parameters).plan(FACTS)
    with pytest.raises(ValueError, match=r"r=\[1, .*has 25 entries for the 24 blocks"):
        PiToMe(r=[1] * 25).plan(FACTS)
    with pytest.raises(ValueError, match=r"keep=17 of 576 patches: .* 5 blocks leave at least 18"):
        PiToMe(keep=17).plan(dataclasses.replace(FACTS, feature_block=4))


def test_a_share_is_spread_over_the_blocks_once_the_patches_are_known() -> None:
    unknown = dataclasses.replace(FACTS, tower_grid=None)
    assert [step.amount for step in PiToMe(keep=0.5).plan(unknown)] == [None] * 23
    assert [float(step.amount) for step in PiToMe(rho=0.9).plan(unknown)] == [0.9] * 23
    assert sum(step.amount for step in PiToMe(keep=0.5).plan(dataclasses.replace(FACTS, tower_grid=(16, 32)))) == 256
    assert PiToMe(keep=577).plan(FACTS) == ()  # as many as there are


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(2, 30), st.integers(0, 99))
def test_energy_in_windows_pairs_ranks_of_one_window(windows, n, seed):
    """Pairs of neighbouring ranks are of one window and come by the energy of the first; who has no second comes last."""
    generator = torch.Generator().manual_seed(seed)
    metric, window = torch.randn(1, n, 6, generator=generator), torch.randint(windows, (1, n), generator=generator)
    order = by_energy(metric, 0.3, window=window)[0].tolist()
    rank = {row: i for i, row in enumerate(by_energy(metric, 0.3)[0].tolist())}
    of = window[0].tolist()
    pairs, lone = [], []
    for w in sorted(set(of)):
        own = sorted((row for row in range(n) if of[row] == w), key=rank.get)
        pairs += list(zip(own[::2], own[1::2], strict=False))
        lone += own[len(own) // 2 * 2 :]
    pairs.sort(key=lambda pair: rank[pair[0]])
    assert sorted(order) == list(range(n))
    assert order[: 2 * len(pairs)] == [row for pair in pairs for row in pair]
    assert set(order[2 * len(pairs) :]) == set(lone)


def test_candidates_of_a_windowed_block_join_within_their_window():
    generator = torch.Generator().manual_seed(0)
    metric, window = torch.randn(2, 40, 6, generator=generator), torch.randint(6, (2, 40), generator=generator)
    for pairing in (match_energy, match_energy_bsm):
        pairs = pairing(metric, 10, 0.3, window=window)
        assert torch.equal(window.gather(1, pairs.leaving), window.gather(1, pairs.joined))
