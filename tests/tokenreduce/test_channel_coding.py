"""Numbers of few bits: they come back, take the bits that are said, and nothing of what is not valid enters them."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.channel_coding import channels_of, coded_keys, coded_values, coefficients
from tokenreduce.few_bits import packed, unpacked


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 8 / 5), (4, 2)])
@pytest.mark.parametrize("n", [1, 4, 5, 32, 97])
def test_bytes_hold_nothing_else_and_come_back(levels, bits, n):
    codes = torch.randint(levels, (2, 3, n), dtype=torch.uint8)
    held = packed(codes, levels)
    assert held.shape[-1] == -(-n * bits // 8)
    assert torch.equal(unpacked(held, levels, n), codes)


@pytest.mark.parametrize("channels", [1, 2, 7, 8])
def test_half_of_the_coefficients_tell_the_rest(channels):
    x = torch.randn(2, 3, 5, channels)
    waves = coefficients(x)
    assert waves.shape == x.shape
    torch.testing.assert_close(channels_of(waves), x)


def test_bits_of_keys_and_values_are_those_that_are_said():
    """Per number: codes, and scales of 16 bits for each group of 32."""
    x = torch.randn(1, 2, 320, 64)
    for coded, bits in ((coded_values(x, None, 3, 32), 1.6 + 0.5), (coded_values(x, None, 4, 32), 2 + 1),
                        (coded_keys(x, None, 32, 32), 1.5 + 0.75), (coded_keys(x, None, 0, 32), 1 + 0.5)):  # fmt: skip
        held = sum(t.numel() * t.element_size() for name, t in coded.tensors.items() if name != "hard")
        assert 8 * held / x.numel() == pytest.approx(bits, rel=1e-6)


def test_what_is_not_valid_says_nothing():
    x, valid = torch.randn(2, 2, 8, 6), torch.ones(2, 8, dtype=torch.bool)
    valid[1, 6:] = False
    other = x.clone()
    other[1, :, 6:] = torch.tensor([1e4, -1e4])[None, :, None]
    for code in (lambda y: coded_keys(y, valid, 3, 4), lambda y: coded_values(y, valid, 3, 4),
                 lambda y: coded_values(y, valid, 4, 4)):  # fmt: skip
        a, b = code(x).numbers(), code(other).numbers()
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1, :, :6], b[1, :, :6])
