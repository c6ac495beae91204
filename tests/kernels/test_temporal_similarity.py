"""temporal_similarity against the cosine of every pair of places."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.kernels.temporal_similarity import temporal_similarity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 9, 17])
def test_equals_the_cosine(frames, dtype) -> None:
    x = torch.randn(frames, 5, 7).to(dtype)
    x[0, 2] = 0
    found = temporal_similarity(x)
    assert found.shape == (frames - 1, 5)
    assert found.dtype == torch.float32
    for t in range(frames - 1):
        for n in range(5):
            a, b = x[t, n].double(), x[t + 1, n].double()
            expected = float(a @ b / (a.norm() * b.norm()).clamp_min(1e-12))
            assert abs(float(found[t, n]) - expected) < 1e-6  # float32 products of 7 values


def test_memory_does_not_grow_with_the_video(meter) -> None:
    for frames in (256, 1024):
        x = torch.randn(frames, 32, 128)
        with meter:
            temporal_similarity(x)
        assert 0 < meter.largest <= 65 * 32 * 128  # a block of frames, and the one before it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 9, 7), (5, 17, 300)], ids=str)
def test_kernel_equals_the_reference(shape, dtype, on_kernel) -> None:
    x = torch.randn(shape).to(dtype)
    x[1, 0] = 0
    found = on_kernel(temporal_similarity, x)
    # both accumulate in float32, in another order
    torch.testing.assert_close(found, temporal_similarity(x), rtol=0, atol=2e-6)


def test_kernel_reads_views_that_are_not_contiguous(on_kernel) -> None:
    x = torch.randn(4, 14, 6)
    torch.testing.assert_close(on_kernel(temporal_similarity, x[::2, 3:]), temporal_similarity(x[::2, 3:]))
