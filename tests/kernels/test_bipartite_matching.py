"""bipartite_matching against the whole table of cosines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.kernels.bipartite_matching import bipartite_matching
from tokenreduce.kernels.rows import BLOCK

# Inputs of any dtype are raised to float32 before the first product, so only float32's own rounding is left.
CLOSE = {"rtol": 0, "atol": 2e-6}

# B, A, M, C
SIZES = [(1, 1, 1, 1), (2, 3, 1, 5), (2, 1, 9, 4), (3, 18, 18, 16), (1, 37, 36, 7), (2, 131, 67, 64), (1, 289, 288, 64)]


def draw(size: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    batch, rows, columns, channels = size
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(batch, rows, channels, generator=generator) * 3
    return source.to(dtype), torch.randn(batch, columns, channels, generator=generator).to(dtype)


def table(source: Tensor, destination: Tensor) -> Tensor:
    """(B, A, M) cosines in float64."""
    a, b = (x.double() / x.double().norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (source, destination))
    return torch.einsum("bac,bmc->bam", a, b)


def check(source: Tensor, destination: Tensor, **more: int) -> None:
    """The value is the best one, and the partner has it; which of two equal to rounding is left open."""
    best, partner = bipartite_matching(source, destination, **more)
    cosine = table(source, destination)
    assert best.dtype == torch.float32
    assert partner.dtype == torch.long
    torch.testing.assert_close(best.double(), cosine.amax(dim=-1), **CLOSE)
    torch.testing.assert_close(cosine.gather(2, partner[..., None])[..., 0], cosine.amax(dim=-1), **CLOSE)


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES[:-1], ids=str)
def test_equals_the_table(size, dtype, chunk) -> None:
    check(*draw(size, dtype), chunk=chunk)


def test_equals_the_table_at_the_size_of_a_clip_tower() -> None:
    check(*draw(SIZES[-1]))
    check(*draw(SIZES[-1]), chunk=100)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 50), st.integers(0, 9)
)
def test_any_size_and_chunk(batch, rows, columns, channels, chunk, seed) -> None:
    check(*draw((batch, rows, columns, channels), seed=seed), chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 3, 4, 512])
def test_of_equal_cosines_the_lowest_index_wins(chunk) -> None:
    """Rows of four entries +-1/2 have length 1 and products without rounding, so ties are exact."""
    generator = torch.Generator().manual_seed(3)
    source, destination = (torch.randint(0, 2, (2, n, 4), generator=generator) - 0.5 for n in (23, 31))
    best, partner = bipartite_matching(source, destination, chunk=chunk)
    cosine = table(source, destination)
    first = (cosine == cosine.amax(dim=-1, keepdim=True)).int().argmax(dim=-1)
    assert torch.equal(partner, first)
    assert torch.equal(best.double(), cosine.amax(dim=-1))


def test_duplicated_destinations_give_the_first() -> None:
    source, destination = draw((2, 19, 13, 8))
    _, partner = bipartite_matching(source, torch.cat([destination, destination], dim=1))
    assert torch.equal(partner, bipartite_matching(source, destination)[1])


def test_constant_rows_all_choose_the_first() -> None:
    best, partner = bipartite_matching(torch.full((1, 9, 4), 2.0), torch.full((1, 11, 4), 0.5), chunk=4)
    assert not partner.any()
    torch.testing.assert_close(best, torch.ones(1, 9), **CLOSE)


def test_zero_rows_are_similar_to_nothing() -> None:
    source, destination = draw((1, 6, 7, 5))
    best, partner = bipartite_matching(torch.zeros_like(source), destination)
    assert not best.any()
    assert not partner.any()
    best, _ = bipartite_matching(source, torch.zeros_like(destination))
    assert not best.any()
    destination[:, 3] = 0
    best, _ = bipartite_matching(source, destination)
    assert best.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_decides_like_float32_on_the_same_numbers(dtype) -> None:
    source, destination = draw((2, 60, 55, 16), dtype)
    half, full = bipartite_matching(source, destination), bipartite_matching(source.float(), destination.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = bipartite_matching(source, destination)
    for found in (half, cast):
        assert torch.equal(found[0], full[0])
        assert torch.equal(found[1], full[1])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_batch_equals_its_images(size) -> None:
    source, destination = draw(size)
    together = bipartite_matching(source, destination)
    for b in range(size[0]):
        alone = bipartite_matching(source[b : b + 1], destination[b : b + 1])
        assert torch.equal(alone[0][0], together[0][b])
        assert torch.equal(alone[1][0], together[1][b])


def test_large_and_small_rows_have_the_same_partners() -> None:
    source, destination = draw((1, 20, 20, 8))
    expected = bipartite_matching(source, destination)[1]
    assert torch.equal(bipartite_matching(source * 2.0**60, destination * 2.0**-20)[1], expected)


def test_no_table_is_made(meter) -> None:
    source, destination = draw((1, 300, 300, 4))
    with meter:
        bipartite_matching(source, destination, chunk=32)
    assert 0 < meter.largest <= 32 * 300


def test_blocks_are_bounded_by_themselves(meter) -> None:
    with meter:
        bipartite_matching(*draw((2, 2000, 1500, 4)))
    assert 0 < meter.largest <= BLOCK


def test_inputs_are_left_alone_and_no_graph_is_kept() -> None:
    source, destination = draw((2, 9, 8, 4))
    before = source.clone(), destination.clone()
    best, _ = bipartite_matching(source.requires_grad_(), destination)
    assert not best.requires_grad
    assert torch.equal(source, before[0])
    assert torch.equal(destination, before[1])


def test_no_destination_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"destination has shape \(1, 0, 4\); allowed: .* M >= 1"):
        bipartite_matching(torch.ones(1, 3, 4), torch.ones(1, 0, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_equals_the_table(size, dtype, on_kernel) -> None:
    source, destination = draw(size, dtype)
    best, partner = on_kernel(bipartite_matching, source, destination)
    cosine = table(source, destination)
    assert (best.dtype, partner.dtype) == (torch.float32, torch.long)
    torch.testing.assert_close(best.double(), cosine.amax(dim=-1), **CLOSE)
    torch.testing.assert_close(cosine.gather(2, partner[..., None])[..., 0], cosine.amax(dim=-1), **CLOSE)


def test_kernel_ties_zeros_and_strides(on_kernel) -> None:
    """Exact ties over several blocks of columns, rows of zeros, and views that are not contiguous."""
    generator = torch.Generator().manual_seed(3)
    source, destination = (torch.randint(0, 2, (2, n, 4), generator=generator) - 0.5 for n in (23, 151))
    source[0, 5], destination[1, :40] = 0, 0
    expected = bipartite_matching(source, destination)
    for a, b in ((source, destination), (source.mT.contiguous().mT, destination.repeat(1, 1, 2)[..., :4])):
        best, partner = on_kernel(bipartite_matching, a, b)
        assert torch.equal(partner, expected[1])
        torch.testing.assert_close(best, expected[0], **CLOSE)


@pytest.mark.parametrize("chunk", [None, 5])
def test_rows_of_the_own_group_come_first(chunk) -> None:
    source, destination = draw((2, 23, 17, 8))
    generator = torch.Generator().manual_seed(1)
    own = torch.randint(4, (2, 23), generator=generator)
    other = torch.randint(3, (2, 17), generator=generator)  # nobody is of group 3
    best, partner = bipartite_matching(source, destination, chunk=chunk, groups=(own, other))
    expected = table(source, destination) - 4.0 * (own[:, :, None] != other[:, None])
    torch.testing.assert_close(best.double(), expected.amax(dim=-1), **CLOSE)
    torch.testing.assert_close(expected.gather(2, partner[..., None])[..., 0], expected.amax(dim=-1), **CLOSE)
    assert torch.equal(other.gather(1, partner) == own, own < 3)
