"""Loadings of tokens on principal components: the same from the table of rows and from that of channels."""

from __future__ import annotations

import pytest
import torch
from standins import random

from tokenreduce.eval.bench.timing import peak_bytes
from tokenreduce.principal_groups import loadings


@pytest.mark.parametrize("q", [1, 7, 19])
def test_loadings_are_singular_vectors(q):
    x = random(2, 60, 20)
    rows = torch.sigmoid(x).double()
    rows -= rows.mean(dim=2, keepdim=True)
    expected = torch.linalg.svd(rows).U[..., :q]
    torch.testing.assert_close(loadings(x, q).abs(), expected.abs(), atol=1e-10, rtol=0)


def test_more_rows_than_channels_make_no_table_of_all_pairs():
    x = random(1, 1000, 8)
    assert peak_bytes(lambda: loadings(x, 3), x.device) <= 2 * 8 * x.numel()


def test_beyond_the_rank_loadings_are_zero():
    """Less its mean a row of C channels has C - 1 of its own; rows that are all zero have none."""
    assert not loadings(random(1, 30, 6), 6)[..., -1].any()
    assert not loadings(torch.zeros(1, 9, 4), 2).any()
