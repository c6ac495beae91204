"""attention_walk and attention_logits against the materialised map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenreduce.kernels.attention_logits import attention_logits
from tokenreduce.kernels.attention_walk import attention_walk

# five products of a map whose softmax is nearly one-hot: rounding of the logits, ten times as large, goes through each
CLOSE = {"rtol": 2e-4, "atol": 1e-6}

# B, H, H_kv, Q, N, d
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 3, 7, 7, 5),
    (2, 6, 2, 37, 37, 8),
    (1, 4, 1, 131, 131, 16),
    (2, 4, 2, 29, 45, 6),
]


def draw(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, float]:
    batch, heads, kv_heads, rows, n, dim = size
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(batch, heads, rows, dim, generator=generator)
    key = torch.randn(batch, kv_heads, n, dim, generator=generator)
    return query.to(dtype), key.to(dtype), dim**-0.5


def walked(attention: Tensor, real: Tensor, steps: int) -> Tensor:
    """(B, N) of a map (B, H, Q, N) whose queries are the last Q keys, ``real`` (B, Q) of them."""
    past = attention.shape[3] - attention.shape[2]
    mass = torch.zeros(*attention.shape[:2], attention.shape[3], dtype=torch.float64)
    mass[:, :, past:] = (real / real.sum(1, keepdim=True))[:, None]
    for _ in range(steps):
        arrived = torch.einsum("bhq,bhqn->bhn", mass[:, :, past:] * real[:, None], attention)
        arrived[:, :, :past] += mass[:, :, :past]
        mass = arrived
    return mass.square().mean(dim=1).sqrt()


def cases(size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Columns that are real, queries that are, and (B, Q, N) who sees whom, causally."""
    batch, _, _, rows, n, _ = size
    visible = torch.ones(batch, n, dtype=torch.bool)
    visible[0, : n // 3] = False
    if rows == n:
        asked = visible.clone()
    else:
        asked = torch.ones(batch, rows, dtype=torch.bool)
        asked[0, : max(0, n // 3 - (n - rows))] = False
    limit = torch.arange(rows)[:, None] + (n - rows)
    return visible, asked, (torch.arange(n) <= limit) & visible[:, None]


@pytest.mark.parametrize("kernel", [False, True], ids=["reference", "kernel"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_products_with_the_map(size, temperature, kernel, attention_map, on_kernel) -> None:
    query, key, scale = draw(size)
    visible, asked, allowed = cases(size)
    seen = allowed | ~allowed.any(2, keepdim=True)  # a query of padding sees what it likes: it sends nothing
    attention = attention_map(query, key, scale / temperature, seen)
    arguments = {"steps": 5, "temperature": temperature, "visible": visible, "causal": True, "query_mask": asked}
    call = on_kernel if kernel else (lambda run, *args, **more: run(*args, **more))
    found = call(attention_walk, query, key, scale, **arguments)
    torch.testing.assert_close(found, walked(attention, asked.double(), 5).float(), **CLOSE)


@pytest.mark.parametrize("kernel", [False, True], ids=["reference", "kernel"])
def test_blocks_that_attend_both_ways_and_windows(kernel, attention_map, on_kernel) -> None:
    query, key, scale = draw((1, 2, 1, 20, 20, 8))
    place = torch.arange(20)
    place[4:12] = 11
    column = torch.arange(20)
    allowed = (column <= place[:, None]) & (column > place[:, None] - 9)
    attention = attention_map(query, key, scale, allowed[None])
    call = on_kernel if kernel else (lambda run, *args, **more: run(*args, **more))
    found = call(attention_walk, query, key, scale, steps=3, causal=True, place=place[None], window=9)
    torch.testing.assert_close(found, walked(attention, torch.ones(1, 20).double(), 3).float(), **CLOSE)


def test_no_step_leaves_the_mass_where_it_is_and_every_step_keeps_it() -> None:
    query, key, scale = draw((2, 1, 1, 37, 37, 8))
    torch.testing.assert_close(attention_walk(query, key, scale, steps=0), torch.full((2, 37), 1 / 37))
    found = attention_walk(query, key, scale, steps=4, causal=True)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    assert (found[:, 0] > 0.5).all(), "causal mass runs to the first token"


def test_memory_is_one_block_of_queries(meter) -> None:
    query, key, scale = draw((1, 2, 1, 512, 512, 8))
    with meter:
        attention_walk(query, key, scale, steps=2, causal=True, chunk=16)
    assert meter.largest <= 2 * 16 * 512


def test_soft_capped_before_the_temperature(attention_map) -> None:
    query, key, scale = draw((1, 2, 2, 9, 9, 4))
    logits = torch.tanh((query @ key.transpose(-1, -2)) * scale / 1.5) * 1.5 / 0.1
    expected = walked(logits.double().softmax(-1), torch.ones(1, 9).double(), 5)
    torch.testing.assert_close(
        attention_walk(query, key, scale, steps=5, temperature=0.1, softcap=1.5), expected.float(), **CLOSE
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mean_logits(size, softcap, dtype) -> None:
    query, key, scale = draw(size, dtype)
    shared = key.double().repeat_interleave(size[1] // size[2], dim=1)
    logits = query.double() @ shared.transpose(-1, -2) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    found = attention_logits(query, key, scale, softcap=softcap)
    torch.testing.assert_close(found, logits.mean(1).float(), rtol=1e-5, atol=2e-6)
