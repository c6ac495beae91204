"""attention_received against the column mean of the materialised map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.kernels.attention_received import attention_received

# Inputs of any dtype are raised to float32 before the first product, so only float32's own rounding is left.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

# B, H, H_kv, Q, N, d
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 3, 37, 37, 5),
    (2, 6, 2, 29, 43, 8),
    (3, 4, 1, 1, 131, 16),
    (1, 2, 2, 300, 300, 4),
]


def draw(size: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    batch, heads, kv_heads, queries, n, dim = size
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, queries, dim, generator=generator) * 2
    key = torch.randn(batch, kv_heads, n, dim, generator=generator) * 2
    return query.to(dtype), key.to(dtype), dim**-0.5


def causal_map(queries: int, n: int, window: int | None = None) -> Tensor:
    """(Q, N) bool, element by element: query i stands at column n - queries + i."""
    allowed = torch.zeros(queries, n, dtype=torch.bool)
    for i in range(queries):
        at = n - queries + i
        for j in range(n):
            allowed[i, j] = j <= at and (window is None or at - j < window)
    return allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_map(size, dtype, attention_map) -> None:
    query, key, scale = draw(size, dtype)
    found = attention_received(query, key, scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, attention_map(query, key, scale).mean(dim=(1, 2)).float(), **CLOSE)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(size[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 64, 299, 300, 1000])
def test_the_chunk_does_not_matter(chunk) -> None:
    query, key, scale = draw((2, 2, 1, 300, 311, 4))
    for more in ({}, {"causal": True}, {"causal": True, "window": 17}):
        found = attention_received(query, key, scale, chunk=chunk, **more)
        torch.testing.assert_close(found, attention_received(query, key, scale, chunk=512, **more), **CLOSE)


@pytest.mark.parametrize("window", [None, 1, 5, 13, 1000])
@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_causal_and_window(size, window, attention_map) -> None:
    query, key, scale = draw(size)
    allowed = causal_map(size[3], size[4], window).expand(size[0], -1, -1)
    found = attention_received(query, key, scale, causal=True, window=window, chunk=8)
    torch.testing.assert_close(found, attention_map(query, key, scale, allowed).mean(dim=(1, 2)).float(), **CLOSE)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    queries=st.integers(1, 24),
    past=st.integers(0, 9),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 12),
    chunk=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_padding_in_any_place(kv_heads, group, queries, past, causal, window, chunk, seed, attention_map) -> None:
    """Queries and keys that are not real neither give nor take, wherever they are."""
    n, batch = queries + past, 3
    query, key, scale = draw((batch, kv_heads * group, kv_heads, queries, n, 4), seed=seed)
    visible = torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)) < 0.6
    visible[:, -1] = True  # the last query is real
    query_mask = visible[:, past:]
    allowed = visible[:, None].expand(-1, queries, -1)
    if causal:
        allowed = allowed & causal_map(queries, n, window)
    rows = attention_map(query, key, scale, allowed).mean(dim=1).nan_to_num()
    expected = (rows * query_mask[..., None]).sum(dim=1) / query_mask.sum(dim=1, keepdim=True)
    found = attention_received(
        query,
        key,
        scale,
        visible=visible,
        causal=causal,
        window=window if causal else None,
        query_mask=query_mask,
        chunk=chunk,
    )
    torch.testing.assert_close(found, expected.float(), **CLOSE)
    assert (found[~visible] == 0).all()


@pytest.mark.parametrize("chunk", [4, 256])
@pytest.mark.parametrize("over", ["mean", "sum", "max"])
def test_reductions_over_real_queries(over, chunk, attention_map) -> None:
    """Heads are averaged first; queries that are not real add nothing to a sum, a mean or a maximum."""
    query, key, scale = draw((3, 4, 2, 21, 25, 6))
    query_mask = torch.rand(3, 21) < 0.3
    query_mask[0], query_mask[1, 5] = False, True
    allowed = causal_map(21, 25).expand(3, -1, -1)
    rows = attention_map(query, key, scale, allowed).mean(dim=1) * query_mask[..., None]
    number = query_mask.sum(dim=1, keepdim=True).clamp_min(1)
    expected = {"mean": rows.sum(dim=1) / number, "sum": rows.sum(dim=1), "max": rows.amax(dim=1)}[over]
    found = attention_received(query, key, scale, causal=True, query_mask=query_mask, over=over, chunk=chunk)
    torch.testing.assert_close(found, expected.float(), **CLOSE)


def test_a_bias_of_log_sizes_stands_for_repeated_keys() -> None:
    query, key, scale = draw((2, 4, 2, 17, 9, 6))
    size = torch.tensor([3, 1, 2, 1, 5, 4, 1, 1, 2])
    found = attention_received(query, key, scale, bias=size.log().expand(2, -1), chunk=5)
    part = attention_received(query, key.repeat_interleave(size, dim=2), scale)
    owner = torch.arange(9).repeat_interleave(size)
    torch.testing.assert_close(found, torch.zeros_like(found).index_add_(1, owner, part), **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_padded_batch_equals_its_samples(side, causal) -> None:
    lengths, width = (11, 23, 1), 23
    query, key, scale = draw((3, 4, 2, width, width, 6))
    spans = [slice(width - m, width) if side == "left" else slice(0, m) for m in lengths]
    real = torch.zeros(3, width, dtype=torch.bool)
    for b, span in enumerate(spans):
        real[b, span] = True
    together = attention_received(query, key, scale, visible=real, query_mask=real, causal=causal, chunk=5)
    for b, span in enumerate(spans):
        alone = attention_received(query[b : b + 1, :, span], key[b : b + 1, :, span], scale, causal=causal)
        torch.testing.assert_close(together[b : b + 1, span], alone, **CLOSE)
        assert (together[b][~real[b]] == 0).all()


def test_without_real_queries_nothing_is_received() -> None:
    query, key, scale = draw((2, 2, 2, 6, 6, 4))
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1] = True
    found = attention_received(query, key, scale, query_mask=mask)
    assert (found[0] == 0).all()
    torch.testing.assert_close(found[1:], attention_received(query[1:], key[1:], scale), **CLOSE)


def test_keys_that_are_all_alike_share_evenly() -> None:
    query, key, scale = draw((2, 4, 2, 17, 17, 6))
    for same in (torch.zeros_like(key), key[:, :, :1].expand_as(key)):
        torch.testing.assert_close(attention_received(query, same, scale), torch.full((2, 17), 1 / 17), **CLOSE)
    causal = attention_received(torch.zeros_like(query), key, scale, causal=True, chunk=4)
    expected = torch.tensor([sum(1 / (i + 1) for i in range(j, 17)) / 17 for j in range(17)])
    torch.testing.assert_close(causal, expected.expand(2, -1), **CLOSE)


def test_no_map_is_made(meter) -> None:
    size = (1, 3, 3, 200, 200, 4)
    query, key, scale = draw(size)
    visible = torch.ones(1, 200, dtype=torch.bool)
    with meter:
        attention_received(query, key, scale, visible=visible, query_mask=visible, causal=True, window=50, chunk=16)
    assert 0 < meter.largest <= 3 * 16 * 200


def test_some_queries_at_their_places_equal_those_rows_of_all() -> None:
    generator = torch.Generator().manual_seed(5)
    query, key = (torch.randn(2, heads, 13, 4, generator=generator) for heads in (4, 2))
    place = torch.tensor([[12, 3, 7], [0, 5, 1]])
    counts = torch.tensor([[True, True, False], [True, True, True]])
    some = query.gather(2, place[:, None, :, None].expand(-1, 4, -1, 4))
    for over in ("mean", "sum", "max"):
        mask = torch.zeros(2, 13, dtype=torch.bool).scatter(1, place, counts)
        expected = attention_received(query, key, 0.5, causal=True, window=6, query_mask=mask, over=over)
        got = attention_received(
            some, key, 0.5, causal=True, window=6, place=place, query_mask=counts, over=over, chunk=2
        )
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)  # float32, another order of additions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_kernel_equals_the_map(size, dtype, attention_map, on_kernel) -> None:
    query, key, scale = draw(size, dtype)
    found = on_kernel(attention_received, query, key, scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, attention_map(query, key, scale).mean(dim=(1, 2)).float(), **CLOSE)


@pytest.mark.parametrize("over", ["mean", "sum", "max"])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 13)])
def test_kernel_with_masks_equals_the_reference(over, causal, window, on_kernel) -> None:
    query, key, scale = draw((2, 4, 2, 70, 83, 6))
    query_mask, visible = torch.rand(2, 70) < 0.5, torch.rand(2, 83) < 0.8
    query_mask[1], visible[:, 0] = False, True
    place = torch.randint(0, 83, (2, 70)).sort(dim=1).values
    plain = {"causal": causal, "window": window, "over": over}
    for more in (
        {},
        {"visible": visible, "query_mask": query_mask},
        {"bias": torch.randn(2, 83), **({"place": place} if causal else {})},
    ):
        expected = attention_received(query, key, scale, **plain, **more)
        torch.testing.assert_close(on_kernel(attention_received, query, key, scale, **plain, **more), expected, **CLOSE)
