"""group_mean against a loop over groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenreduce.kernels.group_mean import GroupMean, group_mean

# Sums are float32 in any order; the result is rounded to its dtype, half a unit in the last place more.
CLOSE = {
    torch.float32: {"rtol": 1e-6, "atol": 2e-6},
    torch.float16: {"rtol": 1e-3, "atol": 1e-4},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-3},
}
# B, N, D, k
SIZES = [(1, 1, 1, 1), (2, 7, 5, 1), (3, 9, 4, 9), (2, 37, 33, 11), (1, 130, 65, 64)]


def draw(size: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, channels, k = size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, channels, generator=generator).to(dtype)
    assign = torch.randint(-1, k, (batch, n), generator=generator)
    return x, assign, torch.rand(batch, n, generator=generator) * 5 + 0.1


def by_group(x: Tensor, assign: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    weight = torch.ones(assign.shape) if weight is None else weight
    out = torch.zeros(len(x), k, x.shape[2], dtype=torch.double)
    for b in range(len(x)):
        for r in range(k):
            members = assign[b] == r
            if members.any():
                w = weight[b, members].double()
                out[b, r] = (x[b, members].double() * w[:, None]).sum(dim=0) / w.sum()
    return out.to(x.dtype)


@pytest.fixture(params=["reference", "kernel"])
def mean(request, on_kernel):
    if request.param == "reference":
        return group_mean
    return lambda *args: on_kernel(group_mean, *args)


@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_a_loop_over_groups(size, weighted, dtype, mean) -> None:
    x, assign, weight = draw(size, dtype)
    more = (weight,) if weighted else ()
    found = mean(x, assign, size[3], *more)
    assert found.dtype == dtype
    torch.testing.assert_close(found, by_group(x, assign, size[3], *more), **CLOSE[dtype])


@pytest.mark.parametrize("covers", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_groups_are_looked_up_once_for_several_tensors(batch, covers) -> None:
    first, assign, weight = draw((batch, 37, 5, 11))
    assign = assign.clamp_min(0) if covers else assign
    mean = GroupMean(assign, 11, weight, covers=covers)
    looked_up = mean.members
    for x in (first, torch.randn(batch, 37, 2)):
        torch.testing.assert_close(mean(x), by_group(x, assign, 11, weight), **CLOSE[torch.float32])
    assert mean.members is looked_up


def test_empty_groups_and_dropped_tokens_are_zero(mean) -> None:
    x = torch.randn(2, 5, 3)
    assert not mean(x, torch.full((2, 5), -1), 4).any()
    found = mean(x, torch.tensor([[0, -1, 0, -1, 3]] * 2), 4)
    assert not found[:, 1:3].any()
    torch.testing.assert_close(found[:, 3], x[:, 4])


def test_a_group_of_everything_is_the_mean(mean) -> None:
    x = torch.randn(2, 301, 6)
    torch.testing.assert_close(mean(x, torch.zeros(2, 301, dtype=torch.long), 1)[:, 0], x.mean(dim=1))


def test_mass_is_conserved(mean) -> None:
    """Size-weighted means times the sizes of their groups add up to what went in."""
    x, assign, size = draw((3, 41, 7, 13))
    assign = assign.clamp_min(0)
    total = torch.zeros(3, 13).scatter_add_(1, assign, size)
    after = (mean(x, assign, 13, size) * total[..., None]).sum(dim=1)
    torch.testing.assert_close(after, (x * size[..., None]).sum(dim=1), rtol=1e-5, atol=1e-4)


def test_views_that_are_not_contiguous(mean) -> None:
    x, assign, weight = draw((2, 12, 8, 5))
    torch.testing.assert_close(
        mean(x.mT.contiguous().mT, assign, 5, weight), by_group(x, assign, 5, weight), **CLOSE[torch.float32]
    )


def test_single_members_are_left_bit_for_bit() -> None:
    x, _, size = draw((2, 9, 5, 9))
    assert torch.equal(group_mean(x, torch.arange(9).expand(2, -1), 9, size), x)


def test_gradients_flow() -> None:
    x, assign, weight = draw((2, 6, 3, 4))
    x = x.double().requires_grad_()
    group_mean(x, assign, 4, weight).sum().backward()
    assert x.grad is not None
    assert not x.grad[assign < 0].any()
    assert (x.grad[assign >= 0] > 0).all()
