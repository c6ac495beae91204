"""energy_score against the whole table of similarities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.kernels.energy_score import energy_score
from tokenreduce.kernels.rows import BLOCK

# float32 throughout; means of up to 577 values of size 1
CLOSE = {"rtol": 1e-5, "atol": 2e-6}

# B, T, C
SIZES = [(1, 1, 1), (2, 2, 3), (3, 37, 16), (2, 64, 5), (1, 131, 64)]


def draw(size: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def table(metric: Tensor, margin: float, alpha: float = 1.0, shape: str = "elu") -> Tensor:
    """The formulas as printed, in float64."""
    x = metric.double() / metric.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    w = x @ x.mT
    if shape == "gaussian":
        sigma = 1 - margin
        return (torch.exp(-(((1 - w) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))).mean(dim=-1)
    return torch.where(w > margin, w - margin, alpha * ((w - margin).exp() - 1)).mean(dim=-1)


@pytest.mark.parametrize("chunk", [10, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_table(size, dtype, chunk) -> None:
    metric = draw(size, dtype)
    for margin, alpha in ((0.9, 1.0), (0.45, 0.5), (0.0, 2.0), (-0.3, 0.0)):
        found = energy_score(metric, margin, alpha, chunk=chunk)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), table(metric, margin, alpha), **CLOSE)
    found = energy_score(metric, 0.8, shape="gaussian", chunk=chunk)
    torch.testing.assert_close(found.double(), table(metric, 0.8, shape="gaussian"), **CLOSE)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
    margin=st.floats(-1, 1),
    alpha=st.floats(0, 3),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_any_size_margin_and_chunk(size, margin, alpha, chunk, seed) -> None:
    metric = draw(size, seed=seed)
    found = energy_score(metric, margin, alpha, chunk=chunk)
    torch.testing.assert_close(found.double(), table(metric, margin, alpha), **CLOSE)


@pytest.mark.parametrize("shape", ["elu", "gaussian"])
@pytest.mark.parametrize("size", [*SIZES, (3, 289, 64)], ids=str)
def test_a_batch_equals_its_images(size, shape) -> None:
    metric = draw(size)
    together = energy_score(metric, 0.6, shape=shape)
    for b in range(size[0]):
        assert torch.equal(energy_score(metric[b : b + 1], 0.6, shape=shape)[0], together[b])


@pytest.mark.parametrize("shape", ["elu", "gaussian"])
def test_the_order_of_the_rows_does_not_matter(shape) -> None:
    metric = draw((2, 77, 12))
    order = torch.randperm(77, generator=torch.Generator().manual_seed(1))
    moved = energy_score(metric[:, order], 0.6, shape=shape)
    torch.testing.assert_close(moved, energy_score(metric, 0.6, shape=shape)[:, order], **CLOSE)


def test_duplicated_rows_have_equal_energies() -> None:
    metric = draw((2, 41, 8))
    energy = energy_score(torch.cat([metric, metric], dim=1), 0.6)
    assert torch.equal(energy[:, :41], energy[:, 41:])


def test_a_large_cluster_has_more_energy_than_a_small_one_and_that_more_than_a_loner() -> None:
    metric = torch.eye(3).repeat_interleave(torch.tensor([8, 3, 1]), dim=0)[None]
    energy = energy_score(metric, 0.5)[0]
    assert energy[0] > energy[8] > energy[11]
    assert len(energy.unique()) == 3


def test_constant_and_zero_rows() -> None:
    assert torch.allclose(energy_score(torch.full((1, 7, 4), 3.0), 0.4), torch.tensor(0.6), atol=1e-6)
    zero = energy_score(torch.zeros(1, 7, 4), 0.4)
    assert torch.allclose(zero, torch.tensor(math.exp(-0.4) - 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_decides_like_float32_on_the_same_numbers(dtype) -> None:
    metric = draw((2, 60, 16), dtype)
    full = energy_score(metric.float(), 0.5)
    assert torch.equal(energy_score(metric, 0.5), full)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(energy_score(metric, 0.5), full)


def test_no_table_is_made(meter) -> None:
    metric = draw((1, 300, 4))
    with meter:
        energy_score(metric, 0.5, chunk=32)
    assert 0 < meter.largest <= 32 * 300


def test_blocks_are_bounded_by_themselves(meter) -> None:
    metric = draw((2, 2000, 4))
    with meter:
        energy_score(metric, 0.5)
    assert 0 < meter.largest <= BLOCK


def test_inputs_are_left_alone_and_no_graph_is_kept() -> None:
    metric = draw((2, 9, 4))
    before = metric.clone()
    assert not energy_score(metric.requires_grad_(), 0.5).requires_grad
    assert torch.equal(metric, before)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"margin": 1.5}, "margin=1.5; allowed: at most 1"),
        ({"margin": float("nan")}, "margin=nan; allowed: at most 1"),
        ({"margin": 1.0, "shape": "gaussian"}, "margin=1.0; allowed: .* below 1 with shape='gaussian'"),
        ({"margin": 0.5, "shape": "relu"}, "shape='relu'; allowed: 'elu', 'gaussian'"),
    ],
    ids=str,
)
def test_bad_parameters(more, words) -> None:
    with pytest.raises(ValueError, match=words):
        energy_score(torch.ones(1, 3, 4), **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_equals_the_table(size, dtype, on_kernel) -> None:
    metric = draw(size, dtype)
    for margin, alpha in ((0.45, 0.5), (-0.3, 0.0), (1, 1)):
        found = on_kernel(energy_score, metric, margin, alpha)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), table(metric, margin, alpha), **CLOSE)
    found = on_kernel(energy_score, metric, 0.8, shape="gaussian")
    torch.testing.assert_close(found.double(), table(metric, 0.8, shape="gaussian"), **CLOSE)


def test_kernel_gives_equal_rows_equal_energies_and_zero_rows_a_finite_one(on_kernel) -> None:
    metric = draw((2, 75, 9))
    metric[0, 70], metric[1, 3] = metric[0, 1], 0
    found = on_kernel(energy_score, metric[:, 1:], 0.5)
    assert found[0, 0] == found[0, 69]
    torch.testing.assert_close(found.double(), table(metric[:, 1:], 0.5), **CLOSE)
