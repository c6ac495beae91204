"""density_peaks against its definition, pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.kernels.density_peaks import density_peaks
from tokenreduce.kernels.rows import BLOCK


def described(x: Tensor, clusters: int, k: int) -> tuple[list[int], list[int]]:
    """Centres and assignment of one set (N, C), with Python loops over the float64 table of distances."""
    n = len(x)
    d = (x.double()[:, None] - x.double()[None]).square().sum(-1).sqrt() / math.sqrt(x.shape[1])
    density = [-sum(v * v for v in sorted(row.tolist())[: min(k, n)]) / min(k, n) for row in d]
    score = []
    for i in range(n):
        denser = [j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        delta = min((float(d[i, j]) for j in denser), default=float(d.max()))
        score.append(density[i] + math.log(delta) if delta > 0 else -math.inf)
    centres = sorted(sorted(range(n), key=lambda i: (-score[i], i))[:clusters])
    nearest = [min(range(clusters), key=lambda c: (float(d[i, centres[c]]), c)) for i in range(n)]
    for c, i in enumerate(centres):
        nearest[i] = c
    return centres, nearest


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 40), part=st.floats(0, 1), k=st.integers(1, 9), chunk=st.integers(1, 41), seed=st.integers(0, 99)
)
def test_equals_its_description(n, part, k, chunk, seed) -> None:
    x = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(seed))
    clusters = max(1, round(part * n))
    found = density_peaks(x, clusters, k, chunk=chunk)
    for b in range(2):
        centres, nearest = described(x[b], clusters, k)
        assert found.centre[b].tolist() == centres
        assert found.assign[b].tolist() == nearest


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cells=st.lists(st.integers(0, 3), min_size=1, max_size=20), part=st.floats(0, 1), k=st.integers(1, 5))
def test_duplicates_are_ties_and_go_to_the_lowest_index(cells, part, k) -> None:
    """Points on a line at whole numbers: distances, and so ties, are exact."""
    x = torch.tensor(cells).float()[None, :, None]
    clusters = max(1, round(part * len(cells)))
    found = density_peaks(x, clusters, k)
    centres, nearest = described(x[0], clusters, k)
    assert found.centre[0].tolist() == centres
    assert found.assign[0].tolist() == nearest


def test_densities_do_not_underflow() -> None:
    """Three copies of a shape so wide that exp(-d^2) would be 0 for every point of it."""
    shape = torch.tensor([[0.0, 0.0], [40.0, 0.0], [-40.0, 8.0], [0.0, 48.0], [8.0, -56.0]])
    home = torch.tensor([[0.0, 0.0], [1024.0, 0.0], [0.0, 1024.0]])
    found = density_peaks((home[:, None] + shape).flatten(0, 1)[None], 3, 5)
    assert found.centre.tolist() == [[0, 5, 10]]
    assert found.assign[0].tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_all_alike_and_all_kept() -> None:
    same = density_peaks(torch.ones(1, 6, 3), 2, 7)
    assert same.centre.tolist() == [[0, 1]]
    assert same.assign.tolist() == [[0, 1, 0, 0, 0, 0]]
    x = torch.randn(2, 9, 3)
    every = density_peaks(x, 9, 3)
    assert torch.equal(every.centre, torch.arange(9).expand(2, -1))
    assert torch.equal(every.assign, every.centre)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_raised_first(dtype) -> None:
    x = torch.randn(1, 30, 8).to(dtype)
    low, high = density_peaks(x, 5, 7), density_peaks(x.float(), 5, 7)
    assert torch.equal(low.assign, high.assign)
    assert torch.equal(low.score, high.score)


def test_a_batch_equals_its_sets() -> None:
    x = torch.randn(4, 33, 6)
    together = density_peaks(x, 7, 5, chunk=8)
    for b in range(4):
        alone = density_peaks(x[b : b + 1], 7, 5, chunk=8)
        assert all(torch.equal(a[0], t[b]) for a, t in zip(alone, together))


SIZES = ([33, 1, 20, 7], [7, 1, 5, 7], [5, 3, 40, 2])  # rows, clusters and neighbours of each set


def test_sets_of_different_sizes_equal_each_alone() -> None:
    x, (lengths, clusters, neighbours) = torch.randn(4, 33, 6), SIZES
    together = density_peaks(x, clusters, neighbours, lengths=lengths)
    for b, (n, m, k) in enumerate(zip(*SIZES)):
        alone = density_peaks(x[b : b + 1, :n], m, k)
        assert together.centre[b, :m].tolist() == alone.centre[0].tolist()
        assert (together.centre[b, m:] == alone.centre[0, 0]).all()
        assert torch.equal(together.assign[b, :n], alone.assign[0])
        torch.testing.assert_close(together.score[b, :n], alone.score[0])
        assert together.score[b, n:].isneginf().all()
        assert not together.assign[b, n:].any()


def test_many_sets_are_not_looked_at_at_once(meter) -> None:
    with meter:
        density_peaks(torch.randn(40, 100, 4), 3, 2)
    assert 0 < meter.largest <= BLOCK


def test_no_table_of_distances_is_made(meter) -> None:
    x = torch.randn(1, 300, 4)
    with meter:
        density_peaks(x, 11, 7, chunk=16)
    assert 0 < meter.largest <= 16 * 300 * 2


@pytest.mark.parametrize(
    ("clusters", "k", "words"), [(0, 7, "clusters=0 of 9"), (10, 7, "clusters=10 of 9"), (3, 0, "neighbours=0")]
)
def test_bad_numbers_are_refused(clusters, k, words) -> None:
    with pytest.raises(ValueError, match=words):
        density_peaks(torch.randn(1, 9, 2), clusters, k)


@pytest.mark.parametrize(
    ("clusters", "lengths", "words"),
    [
        ([2, 6], [9, 5], "clusters=6 of 5"),
        (1, [9, 10], "lengths=10 of 9"),
        ([2], [9, 5], "clusters has 1 numbers for 2 sets"),
    ],
)
def test_bad_numbers_of_sets_are_refused(clusters, lengths, words) -> None:
    with pytest.raises(ValueError, match=words):
        density_peaks(torch.randn(2, 9, 2), clusters, 3, lengths=lengths)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((1, 1, 2, 1, 3), torch.float32),
        ((2, 9, 3, 9, 1), torch.float16),
        ((1, 37, 5, 6, 7), torch.float32),
        ((1, 17, 33, 1, 9), torch.bfloat16),
    ],
    ids=str,
)
def test_kernel_equals_the_reference(size, dtype, on_kernel) -> None:
    batch, n, channels, clusters, neighbours = size
    x = torch.randn(batch, n, channels).to(dtype)
    expected, found = density_peaks(x, clusters, neighbours), on_kernel(density_peaks, x, clusters, neighbours)
    # sums of squares in another order; the logarithm of a distance near zero is the most sensitive
    torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.centre, expected.centre)
    assert torch.equal(found.assign, expected.assign)


def test_kernel_of_sets_of_different_sizes(on_kernel) -> None:
    x, (lengths, clusters, neighbours) = torch.randn(4, 33, 6), SIZES
    expected = density_peaks(x, clusters, neighbours, lengths=lengths)
    found = on_kernel(density_peaks, x, clusters, neighbours, lengths=lengths)
    torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.centre, expected.centre)
    assert torch.equal(found.assign, expected.assign)


def test_kernel_with_duplicates_and_ties(on_kernel) -> None:
    """Small whole numbers and four channels: squares and their sums are exact, and so are ties."""
    x = torch.randint(0, 2, (1, 37, 4)).float()
    expected, found = density_peaks(x, 5, 3), on_kernel(density_peaks, x, 5, 3)
    assert torch.equal(found.centre, expected.centre)
    assert torch.equal(found.assign, expected.assign)
    assert torch.equal(found.score.isinf(), expected.score.isinf())
