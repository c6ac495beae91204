"""Rows chosen, against a gather of single numbers; blocks of rows."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.kernels.bipartite_matching import bipartite_matching
from tokenreduce.kernels.compaction import compact
from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import BLOCK, LOWEST, row_blocks, take_rows


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 7, 5), (3, 7), (2, 4, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.long, torch.bool])
def test_rows_are_those_that_a_gather_finds(shape, dtype) -> None:
    x = torch.randint(0, 100, shape).to(dtype)
    index = torch.randint(shape[1], (3 if shape[0] == 1 else shape[0], 9))  # one table serves several images
    expected = torch.stack([x[min(b, len(x) - 1)][row] for b, row in enumerate(index)])
    assert torch.equal(take_rows(x, index), expected)


def test_rows_of_a_view_and_their_gradient() -> None:
    x = torch.randn(2, 6, 8, requires_grad=True)
    index = torch.tensor([[0, 2, 2], [1, 0, 1]])
    take_rows(x[:, ::2], index).sum().backward()
    assert torch.equal(x.grad[:, ::2, 0], torch.tensor([[1.0, 0, 2], [1, 2, 0]]))
    assert not x.grad[:, 1::2].any()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("wrong", [4, -1])
def test_an_index_out_of_range_is_an_error(batch, wrong) -> None:
    index = torch.zeros(batch, 2, dtype=torch.long)
    index[0 if wrong > 0 else -1, 1] = wrong
    with pytest.raises((IndexError, RuntimeError)):
        take_rows(torch.zeros(batch, 4, 2), index)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, i, w: take_rows(x, i[:1]), r"take_rows: index has shape \(1, 4\); allowed: \(2, K\)"),
        (lambda x, i, w: take_rows(x, i[0]), r"take_rows: index has shape \(4,\)"),
        (lambda x, i, w: group_mean(x, i[:, :3], 2), r"group_mean: assign has shape \(2, 3\); allowed: \(2, 4\)"),
        (lambda x, i, w: group_mean(x, i, 2, w[:1]), r"group_mean: weight has shape \(1, 4\); allowed: \(2, 4\)"),
        (lambda x, i, w: compact(x, i[:1]), r"compact: index has shape \(1, 4\); allowed: \(2, 4\)"),
        (lambda x, i, w: compact(x, i, w[:, :2] > 0), r"compact: valid has shape \(2, 2\); allowed: \(2, 4\)"),
        (lambda x, i, w: bipartite_matching(x, x[:1]), r"destination has shape \(1, 4, 3\); allowed: \(2, 4, 3\)"),
        (lambda x, i, w: bipartite_matching(x, x[..., :2]), r"destination has shape \(2, 4, 2\); allowed: \(2, 4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, words) -> None:
    """A row of indices or weights for one image of two would be taken for both of them, without a word."""
    with pytest.raises(ValueError, match=words):
        call(torch.randn(2, 4, 3), torch.tensor([[0, 1, 1, 0]]).expand(2, -1), torch.ones(2, 4))


@pytest.mark.parametrize("columns", [0, 1, 577, BLOCK, 10 * BLOCK])
def test_blocks_cover_all_rows_once(columns) -> None:
    rows = [row for block in row_blocks(1000, columns) for row in range(1000)[block]]
    assert rows == list(range(1000))
    assert all((b.stop - b.start) * columns <= max(BLOCK, LOWEST * columns) for b in row_blocks(1000, columns))
    assert [b.stop - b.start for b in row_blocks(10, columns, chunk=4)] == [4, 4, 2]
