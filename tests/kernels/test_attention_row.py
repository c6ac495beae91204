"""attention_row against the materialised map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.dispatch import backend

# Inputs of any dtype are raised to float32 before the first product, so only float32's own rounding is left.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

# B, H, H_kv, R, N, d
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 3, 1, 7, 5),
    (2, 6, 2, 3, 37, 8),
    (1, 4, 1, 2, 131, 16),
    (3, 8, 4, 1, 577, 12),
    (2, 5, 5, 29, 29, 6),
]


def draw(size: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    batch, heads, kv_heads, rows, n, dim = size
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, rows, dim, generator=generator) * 2
    key = torch.randn(batch, kv_heads, n, dim, generator=generator) * 2
    return query.to(dtype), key.to(dtype), dim**-0.5


def some(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Random visibility in which every row sees at least one key."""
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    allowed[..., -1] = True
    return allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_map(size, heads, dtype, attention_map) -> None:
    query, key, scale = draw(size, dtype)
    full = attention_map(query, key, scale)
    expected = full.mean(dim=1) if heads == "mean" else full.amax(dim=1)
    found = attention_row(query, key, scale, heads=heads)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), **CLOSE)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_soft_capped_logits(size) -> None:
    """As Gemma 2 caps them; the kernel leaves such calls to the reference, and says so."""
    query, key, scale = draw(size)
    shared = key.repeat_interleave(size[1] // size[2], dim=1)
    logits = (query @ shared.transpose(-1, -2)) * scale
    capped = (torch.tanh(logits / 1.5) * 1.5).softmax(dim=-1)
    torch.testing.assert_close(attention_row(query, key, scale, softcap=1.5), capped.mean(dim=1), **CLOSE)
    received = attention_received(query, key, scale, softcap=1.5)
    torch.testing.assert_close(received, capped.mean(dim=(1, 2)), **CLOSE)
    with backend("triton"), pytest.raises(ValueError, match=r"soft-capped|installed|interpreter"):
        attention_row(query, key, scale, softcap=1.5)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_hidden_keys_get_nothing(size, per_row, attention_map) -> None:
    query, key, scale = draw(size)
    batch, _, _, rows, n, _ = size
    visible = some((batch, rows, n) if per_row else (batch, n))
    allowed = visible if per_row else visible[:, None].expand(batch, rows, n)
    found = attention_row(query, key, scale, visible=visible)
    torch.testing.assert_close(found, attention_map(query, key, scale, allowed).mean(dim=1).float(), **CLOSE)
    assert (found[~allowed] == 0).all()


@pytest.mark.parametrize("heads", ["mean", "max"])
def test_a_bias_of_log_sizes_stands_for_repeated_keys(heads) -> None:
    """A key of size s takes the part of s equal keys; a size of 1 changes nothing."""
    query, key, scale = draw((2, 4, 2, 3, 11, 6))
    size = torch.tensor([3, 1, 2, 1, 1, 4, 1, 1, 2, 1, 1])
    found = attention_row(query, key, scale, bias=size.log().expand(2, -1), heads=heads)
    part = attention_row(query, key.repeat_interleave(size, dim=2), scale, heads=heads)
    owner = torch.arange(11).repeat_interleave(size)
    torch.testing.assert_close(found, torch.zeros_like(found).index_add_(2, owner, part), **CLOSE)
    plain = attention_row(query, key, scale, heads=heads)
    assert torch.equal(attention_row(query, key, scale, bias=torch.zeros(2, 11), heads=heads), plain)


def test_a_bias_belongs_to_its_image_and_does_not_uncover_hidden_keys() -> None:
    query, key, scale = draw((3, 2, 2, 2, 9, 4))
    bias, visible = torch.randn(3, 9) * 3, some((3, 9))
    together = attention_row(query, key, scale, visible=visible, bias=bias)
    assert (together[~visible[:, None].expand(-1, 2, -1)] == 0).all()
    for b in range(3):
        own = slice(b, b + 1)
        alone = attention_row(query[own], key[own], scale, visible=visible[own], bias=bias[own])
        torch.testing.assert_close(together[own], alone, **CLOSE)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    rows=st.integers(1, 6),
    n=st.integers(1, 40),
    dim=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_rows_are_distributions_over_visible_keys(batch, kv_heads, group, rows, n, dim, seed) -> None:
    query, key, scale = draw((batch, kv_heads * group, kv_heads, rows, n, dim), seed=seed)
    visible = some((batch, n), seed)
    found = attention_row(query, key, scale, visible=visible)
    assert found.shape == (batch, rows, n)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(batch, rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_batch_equals_its_images(size) -> None:
    query, key, scale = draw(size)
    visible = some((size[0], size[4]))
    together = attention_row(query, key, scale, visible=visible)
    for b in range(size[0]):
        alone = attention_row(query[b : b + 1], key[b : b + 1], scale, visible=visible[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone, **CLOSE)


def test_keys_that_are_all_alike_share_evenly() -> None:
    query, key, scale = draw((2, 4, 2, 3, 11, 6))
    visible = some((2, 11))
    share = visible.float() / visible.sum(dim=1, keepdim=True)
    for same in (torch.zeros_like(key), key[:, :, :1].expand_as(key)):
        found = attention_row(query, same, scale, visible=visible)
        torch.testing.assert_close(found, share[:, None].expand(-1, 3, -1), **CLOSE)
    found = attention_row(torch.zeros_like(query), key, scale, visible=visible)
    torch.testing.assert_close(found, share[:, None].expand(-1, 3, -1), **CLOSE)


def test_duplicated_keys_get_equal_shares() -> None:
    query, key, scale = draw((1, 4, 4, 2, 19, 8))
    found = attention_row(query, torch.cat([key, key], dim=2), scale)
    assert torch.equal(found[..., :19], found[..., 19:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_huge_logits_stay_finite(dtype) -> None:
    query, key, scale = draw((1, 2, 2, 2, 9, 4), dtype)
    found = attention_row(query * 200, key * 200, scale)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(1, 2), rtol=0, atol=1e-5)


def test_inputs_are_left_alone() -> None:
    query, key, scale = draw((2, 4, 2, 1, 9, 4))
    before = query.clone(), key.clone()
    attention_row(query, key, scale, visible=some((2, 9)))
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])


def test_grouped_keys_are_not_repeated(meter) -> None:
    query, key, scale = draw((1, 8, 2, 1, 50, 64))
    with meter:
        attention_row(query, key, scale)
    assert 0 < meter.largest <= key.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("size", [*SIZES[:4], SIZES[5]], ids=str)
def test_kernel_equals_the_map(size, heads, dtype, attention_map, on_kernel) -> None:
    query, key, scale = draw(size, dtype)
    full = attention_map(query, key, scale)
    found = on_kernel(attention_row, query, key, scale, heads=heads)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (full.mean(dim=1) if heads == "mean" else full.amax(dim=1)).float(), **CLOSE)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("size", SIZES[1:4], ids=str)
def test_kernel_with_hidden_keys_and_bias_equals_the_reference(size, per_row, on_kernel) -> None:
    query, key, scale = draw(size)
    batch, _, _, rows, n, _ = size
    visible = some((batch, rows, n) if per_row else (batch, n))
    visible[0] = False  # a row that sees nothing spreads evenly
    bias = torch.randn(batch, n) * 3
    for more in ({"visible": visible}, {"bias": bias}, {"visible": visible, "bias": bias}):
        expected = attention_row(query, key, scale, **more)
        torch.testing.assert_close(on_kernel(attention_row, query, key, scale, **more), expected, **CLOSE)


def test_kernel_reads_views_and_large_logits(on_kernel) -> None:
    query, key = torch.randn(2, 5, 4, 6).transpose(1, 2), torch.randn(2, 40, 2, 6).transpose(1, 2)
    expected = attention_row(query, key, 30.0)
    torch.testing.assert_close(on_kernel(attention_row, query, key, 30.0), expected, rtol=1e-4, atol=1e-6)
