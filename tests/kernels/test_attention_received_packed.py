"""attention_received of packed sequences against the block-diagonal map; what the kernel leaves out of causal ones."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenreduce.kernels.attention_received import attention_received

# Inputs of any dtype are raised to float32 before the first product, so only float32's own rounding is left.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

LENGTHS = {
    "one": [37],
    "one token": [1],
    "single tokens": [1] * 9,
    "windows": [16] * 6,
    "windows of a block": [64] * 3,
    "edge windows": [64, 64, 24, 64, 64, 24, 32, 32, 12],
    "odd": [3, 70, 1, 1, 33, 5, 131],
    "longer than a block": [150, 97],
    "many": [5, 7, 2, 9] * 10,
    "empty ones": [0, 4, 0, 0, 66, 3, 0],
}


def draw(lengths: list[int], heads: int = 2, kv_heads: int = 1, dim: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    query, key = (torch.randn(1, h, sum(lengths), dim, generator=generator) * 2 for h in (heads, kv_heads))
    return query, key, torch.tensor([0, *accumulate(lengths)])


def own_segment(lengths: list[int]) -> Tensor:
    """(N, N) bool, the block diagonal."""
    return torch.block_diag(*[torch.ones(n, n) for n in lengths if n]).bool()


def reduced(attention: Tensor, lengths: list[int], over: str, real: Tensor | None = None) -> Tensor:
    """(1, N) from a block-diagonal map (1, H, N, N)."""
    rows = attention.mean(dim=1)
    if real is not None:
        rows = rows * real[..., None]
    if over == "max":
        return rows.amax(dim=1).float()
    blocks = torch.ones_like(rows) if real is None else real[..., None].expand_as(rows)
    number = (blocks * own_segment(lengths)).sum(dim=1).clamp_min(1) if over == "mean" else 1
    return (rows.sum(dim=1) / number).float()


@pytest.fixture(params=["reference", "triton"])
def either(request, on_kernel) -> Any:
    """Call with the reference, and with the kernel."""
    return on_kernel if request.param == "triton" else lambda operation, *args, **kwargs: operation(*args, **kwargs)


@pytest.mark.parametrize("over", ["mean", "sum", "max"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_the_block_diagonal_map(lengths, over, attention_map, either) -> None:
    query, key, cuts = draw(lengths)
    expected = reduced(attention_map(query, key, 0.4, own_segment(lengths)[None]), lengths, over)
    found = either(attention_received, query, key, 0.4, cuts=cuts, over=over)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_and_heads(dtype, heads, attention_map, either) -> None:
    """With cuts as flash attention has them, too."""
    lengths = [3, 70, 1, 1, 33, 5]
    query, key, cuts = draw(lengths, *heads, dim=80)
    query, key = query.to(dtype), key.to(dtype)
    expected = reduced(attention_map(query, key, 80**-0.5, own_segment(lengths)[None]), lengths, "mean")
    found = either(attention_received, query, key, 80**-0.5, cuts=cuts if dtype == torch.float32 else cuts.int())
    torch.testing.assert_close(found, expected, **CLOSE)
    sums = torch.segment_reduce(found[0], "sum", offsets=cuts)
    torch.testing.assert_close(sums, torch.ones(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("over", ["mean", "sum", "max"])
def test_masks_and_bias_belong_to_their_segments(over, attention_map, either) -> None:
    lengths = [9, 9, 70, 4, 33]
    query, key, cuts = draw(lengths)
    generator = torch.Generator().manual_seed(1)
    visible = torch.rand(1, 125, generator=generator) < 0.7
    visible[:, cuts[:-1]] = True
    real = torch.rand(1, 125, generator=generator) < 0.6
    real[:, 88:92] = False  # nobody asks in a segment
    bias = torch.randn(1, 125, generator=generator)
    longer = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1)  # one channel more adds the bias
    shifted = torch.cat([key, (bias / 0.4)[:, None, :, None].expand(-1, 1, -1, -1)], dim=-1)
    weights = attention_map(longer, shifted, 0.4, own_segment(lengths) & visible[:, None])
    found = either(
        attention_received, query, key, 0.4, visible=visible, bias=bias, query_mask=real, cuts=cuts, over=over
    )
    torch.testing.assert_close(found, reduced(weights, lengths, over, real), **CLOSE)
    assert (found[:, 88:92] == 0).all()


def test_a_segment_of_which_nothing_is_seen_spreads_evenly(either) -> None:
    query, key, cuts = draw([40, 10, 30])
    visible = torch.ones(1, 80, dtype=torch.bool)
    visible[:, 40:50] = False
    found = either(attention_received, query, key, 0.4, visible=visible, cuts=cuts)
    torch.testing.assert_close(found[:, 40:50], torch.full((1, 10), 0.1), **CLOSE)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_chunk_does_not_matter(chunk, meter) -> None:
    """Neither to the values, nor, beyond the longest segment, to memory."""
    lengths = [300, *[16] * 100, 1, 299]
    query, key, cuts = draw(lengths)
    expected = torch.cat(
        [attention_received(*own, 0.4) for own in zip(*(x.split(lengths, 2) for x in (query, key)))], 1
    )
    with meter:
        found = attention_received(query, key, 0.4, cuts=cuts, chunk=chunk)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert meter.largest <= max(2 * chunk * 300, query.numel())


@pytest.mark.parametrize(
    ("cuts", "more", "words"),
    [
        ([0, 8], {"causal": True}, "causal=True"),
        ([0, 5], {}, "rise from 0 to N = 8"),
        ([1, 8], {}, "rise from 0 to N = 8"),
        ([0, 6, 4, 8], {}, "rise from 0 to N = 8"),
    ],
)
def test_wrong_cuts_are_refused(cuts, more, words) -> None:
    query, key, _ = draw([8])
    with pytest.raises(ValueError, match=words):
        attention_received(query, key, 0.4, cuts=torch.tensor(cuts), **more)


def test_cuts_are_for_one_sequence_and_its_own_keys() -> None:
    query, key, cuts = draw([8])
    with pytest.raises(ValueError, match=r"B = 1 and Q = N; got .*\(1, 2, 3, 6\)"):
        attention_received(query[:, :, :3], key, 0.4, cuts=cuts)
    with pytest.raises(ValueError, match=r"B = 1 and Q = N; got .*\(2, 2, 8, 6\)"):
        attention_received(query.expand(2, -1, -1, -1), key.expand(2, -1, -1, -1), 0.4, cuts=cuts)


@pytest.fixture
def tiles(monkeypatch) -> dict[str, int]:
    """How many blocks of logits each of the two kernels makes; only the interpreter can tell."""
    if torch.cuda.is_available():
        pytest.skip("compiled kernels cannot be watched")
    from tokenreduce.kernels.triton import attention_received as received
    from tokenreduce.kernels.triton import attention_row as row

    number = {"statistics": 0, "received": 0}
    for name, module in (("statistics", row), ("received", received)):

        def counted(*args: Any, original: Any = module.logits, name: str = name, **kwargs: Any) -> Any:
            number[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, "logits", counted)
    return number


def test_work_follows_the_segments(tiles, on_kernel) -> None:
    query, key, cuts = draw([64] * 5, heads=2)
    on_kernel(attention_received, query, key, 0.4, cuts=cuts)
    assert tiles == {"statistics": 2 * 10, "received": 2 * 5 * 2}  # 32 rows by 64 columns


@pytest.mark.parametrize(("window", "placed", "blocks"), [(None, False, 20), (64, False, 14), (None, True, 20)])
def test_causal_blocks_that_nobody_sees_are_left_out(window, placed, blocks, tiles, on_kernel) -> None:
    query, key, _ = draw([256], heads=2)
    place = torch.arange(256)[None] if placed else None
    on_kernel(attention_received, query, key, 0.4, causal=True, window=window, place=place)
    assert tiles == {"statistics": 2 * blocks, "received": 2 * blocks}  # of 8 x 4 for each of 2 heads


@pytest.mark.parametrize("window", [None, 13, 64])
@pytest.mark.parametrize(("queries", "n"), [(1, 70), (100, 100), (40, 140), (70, 50)])
def test_what_is_left_out_changes_no_bit(queries, n, window, on_kernel) -> None:
    """A bias keeps every block, and one of zero adds nothing; rows that see nothing spread over all keys either way."""
    generator = torch.Generator().manual_seed(n)
    query, key = (torch.randn(2, h, m, 6, generator=generator) for h, m in ((2, queries), (1, n)))
    padded = torch.arange(n) >= torch.tensor([[37], [0]])
    place = torch.randint(0, n, (2, queries), generator=generator)
    for more in ({"over": "max"}, {"visible": padded}, {"place": place, "visible": padded}):
        asked = {"causal": True, "window": window, **more}
        found = on_kernel(attention_received, query, key, 0.4, **asked)
        assert torch.equal(found, on_kernel(attention_received, query, key, 0.4, bias=torch.zeros(2, n), **asked))
        torch.testing.assert_close(found, attention_received(query, key, 0.4, **asked), **CLOSE)
