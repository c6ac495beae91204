"""compact against indexing row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenreduce.kernels.compaction import compact

# B, N, D, K
SIZES = [(1, 1, 1, 1), (2, 7, 5, 1), (3, 9, 4, 9), (2, 37, 33, 50), (1, 130, 1100, 3)]


@pytest.fixture(params=["reference", "kernel"])
def moved(request, on_kernel):
    if request.param == "reference":
        return compact
    return lambda *args: on_kernel(compact, *args)


def row_by_row(x: Tensor, index: Tensor, valid: Tensor | None = None) -> Tensor:
    out = torch.zeros(*index.shape, x.shape[2], dtype=x.dtype)
    for b, k in torch.cartesian_prod(*(torch.arange(size) for size in index.shape)).tolist():
        if index[b, k] >= 0 and (valid is None or valid[b, k]):
            out[b, k] = x[b, index[b, k]]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_indexing(size, masked, dtype, moved) -> None:
    batch, n, channels, k = size
    x = torch.randn(batch, n, channels).to(dtype)
    index = torch.randint(-1, n, (batch, k))
    more = (torch.rand(batch, k) < 0.5,) if masked else ()
    assert torch.equal(moved(x, index, *more), row_by_row(x, index, *more))


def test_rows_that_do_not_exist_are_zero_even_beside_nan(moved) -> None:
    x = torch.full((1, 3, 2), torch.nan)
    x[0, 1] = 7
    found = moved(x, torch.tensor([[1, 0, -1]]), torch.tensor([[True, False, True]]))
    assert found.tolist() == [[[7, 7], [0, 0], [0, 0]]]


def test_views_that_are_not_contiguous(moved) -> None:
    x, index = torch.randn(2, 4, 6).mT, torch.randint(0, 6, (5, 2)).mT
    assert torch.equal(moved(x, index), row_by_row(x, index))


def test_gradients_flow_to_kept_rows_only() -> None:
    x = torch.randn(1, 4, 2, requires_grad=True)
    compact(x, torch.tensor([[2, -1]])).sum().backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]
