"""fingerprint and hash_uniform: known values, independence of the batch, even draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce.kernels.fingerprint import fingerprint, hash_uniform, mix

WORD = 1 << 64


def signed(x: int) -> int:
    return (x + (WORD >> 1)) % WORD - (WORD >> 1)


def splitmix(x: int) -> int:
    """The finaliser in unbounded integers."""
    x %= WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def test_mix_gives_the_published_stream() -> None:
    """Rosetta Code, pseudo-random numbers/splitmix64, seed 1234567."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    state = [signed(1234567 + i * 0x9E3779B97F4A7C15) for i in range(1, 6)]
    assert mix(torch.tensor(state)).tolist() == [signed(x) for x in published]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=9, unique=True))
def test_mix_is_the_finaliser_and_a_bijection(numbers) -> None:
    found = mix(torch.tensor(numbers)).tolist()
    assert found == [signed(splitmix(x)) for x in numbers]
    assert len(set(found)) == len(numbers)


def test_fingerprint_in_unbounded_integers() -> None:
    image = torch.randn(1, 2, 3)
    bits = image.numpy().view(np.int32).flatten().tolist()
    total = sum(b * splitmix((i + 1) * 0x9E3779B97F4A7C15) for i, b in enumerate(bits))
    assert fingerprint(image).item() == signed(splitmix(total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_same_pixels_same_number_in_any_batch(dtype) -> None:
    images = torch.randn(5, 3, 7, 9).to(dtype)
    together = fingerprint(images)
    assert together.dtype == torch.int64
    assert together.unique().numel() == 5
    assert torch.equal(torch.cat([fingerprint(image[None]) for image in images]), together)
    assert torch.equal(fingerprint(images.flip(0)), together.flip(0))
    assert torch.equal(fingerprint(images.float()), together), "equal values in another dtype"
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not strided.is_contiguous()
    assert torch.equal(fingerprint(strided), together)


def test_the_sign_of_zero_is_not_seen() -> None:
    image = torch.randn(1, 3, 4, 4)
    image[0, 0, 0] = 0.0
    negative = image.clone()
    negative[0, 0, 0] = -0.0
    assert torch.equal(image, negative)
    assert torch.equal(fingerprint(image), fingerprint(negative))


def test_small_changes_are_seen() -> None:
    image = torch.randn(3, 6, 6)
    changed = [image, image.flip(1), image.flip(2), image.transpose(1, 2), torch.zeros_like(image)]
    for at in range(image.numel()):
        one = image.clone().flatten()
        one[at] = torch.nextafter(one[at], torch.tensor(10.0))
        changed.append(one.view_as(image))
    assert fingerprint(torch.stack(changed)).unique().numel() == len(changed)


def test_constant_images_differ_by_their_value() -> None:
    greys = torch.arange(256).float() / 255
    assert fingerprint(greys[:, None, None].expand(-1, 8, 8)).unique().numel() == 256


def test_draws_depend_on_key_column_and_seed_only() -> None:
    key = fingerprint(torch.randn(4, 3, 5, 5))
    draw = hash_uniform(key, 17, seed=3)
    assert draw.shape == (4, 17)
    assert draw.dtype == torch.float64
    assert torch.equal(hash_uniform(key[2:3], 17, seed=3), draw[2:3])
    assert torch.equal(hash_uniform(key, 9, seed=3), draw[:, :9])
    assert (hash_uniform(key, 17, seed=4) != draw).all()
    assert draw.unique().numel() == draw.numel()


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**63, 10**30])
def test_any_integer_is_a_seed_and_draws_are_even(seed) -> None:
    draw = hash_uniform(torch.arange(200), 100, seed)
    assert ((draw >= 0) & (draw < 1)).all()
    # 20 000 draws: the mean strays by 0.289 / sqrt(20000) = 0.002, a tenth's count by 42
    assert abs(draw.mean().item() - 0.5) < 0.01
    assert (draw.flatten().mul(10).long().bincount(minlength=10) - 2000).abs().max() < 220


def test_neighbouring_keys_and_columns_are_unrelated() -> None:
    draw = hash_uniform(torch.arange(300), 300, seed=0) - 0.5
    for other in (draw.roll(1, dims=0), draw.roll(1, dims=1), draw.T):
        # correlation of 90 000 independent pairs strays by 1 / 300
        assert abs((draw * other).mean().item() * 12) < 0.02
