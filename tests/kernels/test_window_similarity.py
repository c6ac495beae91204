"""window_similarity against the Gram matrix of every window."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.kernels.window_similarity import window_similarity

CLOSE = {"rtol": 0, "atol": 2e-6}  # float32 sums of a few hundred products, inputs already rounded to their dtype


def by_pairs(x: Tensor, height: int, width: int, w: int) -> Tensor:
    """Every pair of every window, in float64."""
    rows = []
    for grid in x.double().unflatten(1, (height, width)):
        found = []
        for top in range(0, height, w):
            for left in range(0, width, w):
                cells = [grid[top + i, left + j] for i in range(w) for j in range(w)]
                pairs = [
                    torch.nn.functional.cosine_similarity(a, b, dim=0, eps=1e-12)
                    for i, a in enumerate(cells)
                    for j, b in enumerate(cells)
                    if i != j
                ]
                found.append(torch.stack(pairs).mean())
        rows.append(torch.stack(found))
    return torch.stack(rows).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 3), columns=st.integers(1, 3), w=st.integers(2, 3), c=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_equals_the_mean_over_pairs(dtype, rows, columns, w, c, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    height, width = rows * w, columns * w
    x = (torch.randn(2, height * width, c, generator=generator) + 0.5).to(dtype)
    x[0, 0] = 0  # a zero vector is like nothing
    found = window_similarity(x, height, width, w)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_pairs(x, height, width, w), **CLOSE)


def test_windows_of_equal_content_tie_exactly() -> None:
    """Flat borders give many equal windows; their order must not hang on rounding."""
    x = torch.randn(1, 9, 33).reshape(1, 3, 3, 33).repeat(1, 4, 5, 1).flatten(1, 2)
    found = window_similarity(x, 12, 15, 3)
    assert (found == found[0, 0]).all()
    flat = torch.randn(33).expand(1, 36, 33)
    torch.testing.assert_close(window_similarity(flat, 6, 6, 3), torch.ones(1, 4), **CLOSE)
    assert (window_similarity(torch.zeros(1, 36, 5), 6, 6, 3) == 0).all()


def test_autocast_changes_nothing() -> None:
    x = torch.randn(1, 36, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = window_similarity(x, 6, 6, 3)
    assert torch.equal(found, window_similarity(x, 6, 6, 3))


def test_no_gram_matrix_is_made(meter) -> None:
    x = torch.randn(1, 144, 16)
    with meter:
        window_similarity(x, 12, 12, 6)
    assert 0 < meter.largest <= x.numel()


@pytest.mark.parametrize(
    ("n", "height", "width", "window"), [(35, 6, 6, 3), (36, 6, 6, 4), (36, 4, 9, 3), (36, 6, 6, 1)]
)
def test_grids_that_cannot_be_cut_are_refused(n, height, width, window) -> None:
    with pytest.raises(
        ValueError, match=rf"{n} tokens in a {height}x{width} grid .* {window}x{window} windows; allowed"
    ):
        window_similarity(torch.randn(1, n, 4), height, width, window)
