"""max_min_selection and dpp_selection against the plain loops over full tables, and against golden vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tokenreduce.kernels import cosine_rows, dispatch, greedy_selection
from tokenreduce.kernels.greedy_selection import dpp_selection, max_min_selection

GOLDEN = Path(__file__).parent / "golden"
# B, N, C, k
SIZES = [(1, 1, 3, 1), (2, 2, 3, 2), (2, 9, 5, 9), (3, 37, 24, 1), (1, 70, 33, 9)]


@pytest.fixture(params=["reference", "few rows", "kernel"])
def selected(request, on_kernel, monkeypatch):
    if request.param == "kernel":
        return on_kernel
    if request.param == "few rows":  # blocks of 2 rows, and no more kept than there are channels
        monkeypatch.setattr(cosine_rows, "BLOCK", 2)
        monkeypatch.setattr(greedy_selection, "BLOCK", 2)
        monkeypatch.setattr(cosine_rows, "SMALL", 0)
    return lambda op, *args, **more: op(*args, **more)


@pytest.fixture
def few(request) -> int | None:
    """Tokens of a greedy order to compare: all, or the first where Triton's interpreter is slow."""
    interpreted = request.node.callspec.params["selected"] == "kernel" and not torch.cuda.is_available()
    return 8 if interpreted else None


def cosines(x: Tensor) -> Tensor:
    x = x.double() / x.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return x @ x.mT


def max_min_by_table(x: Tensor, k: int) -> list[int]:
    """One image (N, C), in float64."""
    distance = 1 - cosines(x)
    other = distance.clone().fill_diagonal_(torch.inf)
    taken = [int(other.amin(dim=1).argmax())]
    while len(taken) < k:
        gain = distance[taken].amin(dim=0)
        gain[taken] = -torch.inf
        taken.append(int(gain.argmax()))
    return taken


def dpp_by_determinant(x: Tensor, r: Tensor, k: int) -> list[int]:
    """One image: what multiplies the determinant of L most, every determinant from scratch, in float64."""
    table = r.double()[:, None] * cosines(x) * r.double()
    taken: list[int] = []
    while len(taken) < k:
        volume = torch.full((len(x),), -torch.inf, dtype=torch.double)
        for i in set(range(len(x))) - set(taken):
            rows = torch.tensor([*taken, i])
            volume[i] = torch.linalg.det(table[rows][:, rows])
        taken.append(int(volume.argmax()))
    return taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_max_min_equals_the_loop(size, dtype, selected) -> None:
    batch, n, channels, k = size
    x = torch.randn(batch, n, channels).to(dtype)
    found = selected(max_min_selection, x, k)
    assert found.tolist() == [max_min_by_table(image, k) for image in x]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(1, 1, 3, 1), (2, 9, 12, 9), (2, 37, 24, 6)], ids=str)
def test_dpp_equals_determinants(size, dtype, selected) -> None:
    batch, n, channels, k = size
    x, r = torch.randn(batch, n, channels).to(dtype), torch.rand(batch, n) + 0.1
    found = selected(dpp_selection, x, r, k)
    assert found.tolist() == [dpp_by_determinant(image, weight, k) for image, weight in zip(x, r)]


@pytest.mark.parametrize("case", sorted(p.stem for p in (GOLDEN / "divprune").glob("*.npz")))
def test_golden_divprune(case, selected, few) -> None:
    vector = np.load(GOLDEN / f"divprune/{case}.npz")
    expected = torch.from_numpy(vector["out_order"])[:few]
    found = selected(max_min_selection, torch.from_numpy(vector["in_tokens"])[None], len(expected))
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("case", sorted(p.stem for p in (GOLDEN / "cdpruner").glob("*.npz")))
def test_golden_cdpruner(case, selected, few) -> None:
    vector = np.load(GOLDEN / f"cdpruner/{case}.npz")
    expected = torch.from_numpy(vector["out_order"])[:, :few]
    x, r = torch.from_numpy(vector["in_features"]), torch.from_numpy(vector["out_relevance"])
    assert torch.equal(selected(dpp_selection, x, r, expected.shape[1]), expected)


def test_ties_and_duplicates_go_to_the_lowest_index_and_nothing_is_taken_twice(selected) -> None:
    x = torch.eye(4).repeat(3, 1)[None]
    assert selected(max_min_selection, torch.ones(1, 7, 3), 7).tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert selected(max_min_selection, x, 6).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert selected(dpp_selection, x, torch.ones(1, 12), 5).tolist() == [[0, 1, 2, 3, 4]]


def test_beyond_the_rank_the_most_relevant_follow(selected) -> None:
    x = torch.randn(1, 3, 8).repeat_interleave(4, dim=1)
    r = torch.tensor([[5, 5, 1, 1, 4, 1, 6, 1, 3, 1, 1, 2]]) / 8
    found = selected(dpp_selection, x, r, 9)[0].tolist()
    assert sorted(found[:3]) == [0, 6, 8]
    assert found[3:] == [1, 4, 11, 2, 3, 5]
    assert selected(dpp_selection, x, torch.zeros(1, 12), 3).tolist() == [[0, 1, 2]]


def test_zero_rows_are_far_from_everything(selected) -> None:
    x = torch.randn(1, 9, 4).abs()
    x[0, 5] = 0
    assert selected(max_min_selection, x, 2)[0, 0] == 5
    assert sorted(selected(dpp_selection, x, torch.ones(1, 9), 9)[0].tolist()) == list(range(9))


def test_a_batch_equals_its_images(selected) -> None:
    x, r = torch.randn(3, 40, 12), torch.rand(3, 40)
    for operation, more in ((max_min_selection, ()), (dpp_selection, (r,))):
        together = selected(operation, x, *more, 7)
        for b in range(3):
            alone = selected(operation, x[b : b + 1], *(m[b : b + 1] for m in more), 7)
            assert torch.equal(alone[0], together[b])


def weighted_by_table(x: Tensor, weight: Tensor, first: int, k: int) -> list[int]:
    """One image: the first as told, then by weight times distance to the nearest one taken, in float64."""
    distance = (1 - cosines(x)).clamp_min(0)
    taken = [first]
    while len(taken) < k:
        gain = weight.double() * distance[taken].amin(dim=0)
        gain[taken] = -torch.inf
        taken.append(int(gain.argmax()))
    return taken


def test_distances_are_weighted_from_a_given_token_on(selected) -> None:
    x, weight = torch.randn(3, 37, 24), torch.rand(3, 37)
    weight[1, 5:] = 0  # worth nothing: taken last, in order
    first = torch.tensor([7, 3, 36])
    found = selected(max_min_selection, x, 11, weight=weight, first=first)
    assert found.tolist() == [weighted_by_table(*one, 11) for one in zip(x, weight, first.tolist())]
    unweighted = selected(max_min_selection, x, 11, first=first)
    assert unweighted.tolist() == [weighted_by_table(a, torch.ones(37), i, 11) for a, i in zip(x, first.tolist())]


def test_the_most_isolated_token_is_so_by_its_weighted_distance(selected) -> None:
    x, weight = torch.randn(2, 37, 24), torch.rand(2, 37)
    other = (1 - cosines(x)).masked_fill(torch.eye(37, dtype=torch.bool), torch.inf).amin(dim=2)
    found = selected(max_min_selection, x, 1, weight=weight)
    assert found[:, 0].tolist() == (weight * other).argmax(dim=1).tolist()


def test_look_alikes_need_no_rows_of_their_own(monkeypatch) -> None:
    x = torch.randn(1, 20, 64).repeat_interleave(100, dim=1) + 0.01 * torch.randn(1, 2000, 64)
    made = []

    class Counting(cosine_rows.CosineRows):
        def make(self, index: Tensor) -> Tensor:
            made.append(len(index))
            return super().make(index)

    monkeypatch.setattr(greedy_selection, "CosineRows", Counting)
    assert len((max_min_selection(x, 20) // 100).unique()) == 20
    assert sum(made) < 1000


def test_no_table_is_made_of_many_tokens(meter) -> None:
    x = torch.randn(1, 6000, 4)
    with meter:
        max_min_selection(x, 60)
        dpp_selection(x, torch.ones(1, 6000), 60)
    assert 0 < meter.largest <= 2**20


def test_wrong_arguments_are_refused() -> None:
    x = torch.ones(1, 4, 2)
    with pytest.raises(ValueError, match="k=5 of 4 tokens; allowed: 1 to 4"):
        max_min_selection(x, 5)
    with pytest.raises(ValueError, match=r"relevance has shape \(1, 3\); allowed: \(1, 4\)"):
        dpp_selection(x, torch.ones(1, 3), 2)
    with pytest.raises(ValueError, match=r"weight has shape \(1, 3\); allowed: \(1, 4\)"):
        max_min_selection(x, 2, weight=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"first has shape \(2,\); allowed: \(1,\)"):
        max_min_selection(x, 2, first=torch.ones(2).long())


@pytest.mark.parametrize(("n", "k"), [(576, 64), pytest.param(2880, 320, marks=pytest.mark.long)])
@pytest.mark.parametrize("alike", [False, True])
def test_a_selection_costs_less_than_two_hundredths_of_the_prefill_of_what_is_left(n: int, k: int, alike: bool) -> None:
    """By FLOPs, of a language model as large as Vicuna 7B; among random rows all pairs are made, among alike ones few."""
    layers, width, inner = 32, 4096, 11008
    prefill = layers * (2 * k * (4 * width**2 + 3 * width * inner) + 4 * k**2 * width)
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(1, n, width, generator=generator)
    if alike:
        x = torch.randn(1, 9, width, generator=generator)[:, torch.arange(n) % 9] + 0.3 * x
    for select in (max_min_selection, lambda x, k: dpp_selection(x, torch.rand(1, n, generator=generator), k)):
        with FlopCounterMode(display=False) as counter, dispatch.backend("reference"):
            select(x, k)
        assert 2 * k * width < counter.get_total_flops() < 0.02 * prefill
