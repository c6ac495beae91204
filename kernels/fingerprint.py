"""Integer hashes that are the same on every device, in every batch: seeds that do not depend on the run."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # constants of the splitmix64 finaliser (Steele, Lea, Flood 2014)
_MIX_2 = -7723592293110705685


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser: a bijection of 64-bit integers that scatters neighbours; wraps on overflow."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def fingerprint(images: Tensor) -> Tensor:
    """(M,) long hash of each ``images`` (M, ...) float tensor; equal values give equal hashes in any batch."""
    values = images.detach().float() + 0.0  # -0.0 equals 0.0 but has other bits
    flat = values.contiguous().view(torch.int32).flatten(1).long()
    place = mix(torch.arange(1, flat.shape[1] + 1, device=flat.device) * _GOLDEN)
    return mix((flat * place).sum(dim=1))


def hash_uniform(key: Tensor, n: int, seed: int) -> Tensor:
    """(M, n) float64 in [0, 1) that depends on ``key`` (M,) long, the column and ``seed`` only."""
    column = torch.arange(1, n + 1, device=key.device) * _GOLDEN
    bits = mix(mix(key + seed * _MIX_1 % (1 << 62))[:, None] + column[None])
    return _shift(bits, 11).double() * 2.0**-53


def hash_normal(key: Tensor, n: int, seed: int) -> Tensor:
    """(M, n) float64, standard normal, that depends on ``key`` (M,) long, the column and ``seed`` only (Box and Muller 1958)."""
    radius, angle = hash_uniform(key, 2 * n, seed).split(n, dim=1)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)


def combine(keys: Tensor) -> Tensor:
    """(B,) long hash of the ``keys`` (B, T) long of the frames of a video; order matters."""
    place = mix(torch.arange(1, keys.shape[1] + 1, device=keys.device) * _GOLDEN)
    return mix((keys * place).sum(dim=1))
