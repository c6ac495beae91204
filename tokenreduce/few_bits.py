"""Numbers of two bits, three values or one sign, in groups that share a scale, and bytes that hold nothing else."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

#: digits of a base that fit in a byte
PER_BYTE = {2: 8, 3: 5, 4: 4}
LARGEST = torch.finfo(torch.float16).max


class Quantised(NamedTuple):
    """Codes (..., G, g) uint8 of G groups of g numbers, the scale (..., G) of each, and for two bits its minimum."""

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None = None


def two_bits(x: Tensor, valid: Tensor | None = None) -> Quantised:
    """Four even steps from the minimum to the maximum of each group; codes 0 to 3, halves to the even one.

    Args:
        x: (..., G, g) float32.
        valid: bool, broadcast to ``x``: numbers that count; the codes of others mean nothing. None: all.
    """
    low, high = x, x
    if valid is not None:
        low, high = x.masked_fill(~valid, torch.inf), x.masked_fill(~valid, -torch.inf)
    minimum, most = low.amin(dim=-1), high.amax(dim=-1)
    if valid is not None:
        empty = minimum > most
        minimum, most = minimum.masked_fill(empty, 0), most.masked_fill(empty, 0)
    scale = (most - minimum) / 3
    scale = torch.where(scale > 0, scale, 1.0)
    codes = ((x - minimum[..., None]) / scale[..., None]).round().clamp(0, 3)
    return Quantised(codes.to(torch.uint8), scale, minimum)


def ternary(x: Tensor, valid: Tensor | None = None) -> Quantised:
    """-s, 0 or s, with s the mean absolute value of the group and borders at half of it; codes 0, 1, 2. Arguments as above."""
    scale = _mean_absolute(x, valid)
    half = scale[..., None] / 2
    return Quantised((1 + (x > half).to(torch.uint8) - (x < -half).to(torch.uint8)).to(torch.uint8), scale)


def signs(x: Tensor, valid: Tensor | None = None) -> Quantised:
    """-s or s, with s the mean absolute value of the group; codes 0 and 1, zero is positive. Arguments as above."""
    return Quantised((x >= 0).to(torch.uint8), _mean_absolute(x, valid))


def _mean_absolute(x: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return x.abs().mean(dim=-1)
    return (x.abs() * valid).sum(dim=-1) / valid.sum(dim=-1).clamp_min(1)


def numbers(given: Quantised, levels: int) -> Tensor:
    """(..., G, g) float32, what ``given`` stands for: ``levels`` 4 above the minimum, 3 around zero, or 2 of either sign."""
    codes, scale = given.codes.float(), given.scale.float()[..., None]
    if levels == 4:
        assert given.minimum is not None
        return codes * scale + given.minimum.float()[..., None]
    return (codes - 1) * scale if levels == 3 else (2 * codes - 1) * scale


def packed(codes: Tensor, levels: int) -> Tensor:
    """(..., ceil(n / p)) uint8, p = ``PER_BYTE[levels]`` of the ``codes`` (..., n) in each byte, the first of lowest weight."""
    each = PER_BYTE[levels]
    digits = pad(codes, (0, -codes.shape[-1] % each)).unflatten(-1, (-1, each)).to(torch.int16)
    return (digits * _weights(levels, codes.device)).sum(dim=-1).to(torch.uint8)


def unpacked(held: Tensor, levels: int, n: int) -> Tensor:
    """(..., n) uint8, the codes in ``held``."""
    digits = held[..., None].to(torch.int16) // _weights(levels, held.device) % levels
    return digits.flatten(-2)[..., :n].to(torch.uint8)


def _weights(levels: int, device: torch.device) -> Tensor:
    return levels ** torch.arange(PER_BYTE[levels], dtype=torch.int16, device=device)


def half(x: Tensor) -> Tensor:
    """``x`` in float16, what is too large as the largest."""
    return x.clamp(-LARGEST, LARGEST).half()
