"""Numbers of an attention map without it, against the map itself."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.kernels.attention_map import attention_map


def expected(query, key, of, heads, bias=None, visible=None, query_mask=None):
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.double() @ key.double().mT * 0.5
    if bias is not None:
        logits = logits + bias[:, None, None]
    if visible is not None:
        logits = logits.masked_fill(~visible[:, None, None], -torch.inf)
    weights = logits.softmax(-1)
    if query_mask is not None:
        weights = weights * query_mask[:, None, :, None]
    over = {"mean": lambda x: x.mean(1), "max": lambda x: x.amax(1)}[heads]
    if of == "likeness":
        rows = over(weights)
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return (rows @ rows.mT).sum(-1).float()
    each = {"cls": weights[:, :, 0], "received": weights.sum(2), "diagonal": weights.diagonal(dim1=2, dim2=3)}
    return over(each[of]).float()


def some(n, heads=4, shared=2, batch=2):
    torch.manual_seed(n)
    return torch.randn(batch, heads, n, 5), torch.randn(batch, shared, n, 5)


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("of", ["cls", "received", "diagonal", "likeness"])
@pytest.mark.parametrize("n", [1, 7, 150])
def test_numbers_are_those_of_the_map(n, of, heads):
    query, key = some(n)
    torch.testing.assert_close(attention_map(query, key, 0.5, of, heads=heads), expected(query, key, of, heads))
    bias, seen, real = torch.rand(2, n), torch.rand(2, n) > 0.3, torch.rand(2, n) > 0.3
    seen[:, 0] = True
    more = {"bias": bias, "visible": seen, "query_mask": real}
    found = attention_map(query, key, 0.5, of, heads=heads, **more)
    torch.testing.assert_close(found, expected(query, key, of, heads, **more))


@pytest.mark.parametrize("of", ["received", "diagonal", "likeness"])
def test_segments_attend_within_themselves(of):
    query, key = some(9, batch=1)
    found = attention_map(query, key, 0.5, of, heads="max", cuts=torch.tensor([0, 4, 4, 9]), bias=torch.zeros(1, 9))
    parts = [expected(query[:, :, a:b], key[:, :, a:b], of, "max") for a, b in ((0, 4), (4, 9))]
    torch.testing.assert_close(found, torch.cat(parts, dim=1))
