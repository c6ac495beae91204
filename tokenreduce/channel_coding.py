"""Keys and values in few bits per channel, a scale for each group of neighbouring tokens; keys by Fourier coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenreduce.cache_codec import Coded
from tokenreduce.few_bits import Quantised, half, numbers, packed, signs, ternary, two_bits, unpacked
from tokenreduce.kernels.top_k import top_k


def coded_keys(x: Tensor, valid: Tensor | None, hard: int, group: int) -> Coded:
    """Keys ``x`` (B, H, n, d): the ``hard`` channels of largest range with two bits, the signs of what the others are waves of.

    ``valid``: (B, n) bool, tokens that count; None: all. ``group`` tokens, of which n is a multiple, share a scale.
    """
    x = x.float()
    chosen, soft = by_range(x, valid, hard)
    held = {"hard": chosen.short()}
    if hard:
        held |= _held("hard", two_bits(*_grouped(_channels(x, chosen), valid, group)), 4)
    if hard < x.shape[-1]:
        held |= _held("soft", signs(*_grouped(coefficients(_channels(x, soft)), valid, group)), 2)
    return Coded(held, partial(_keys, x.shape[2], x.shape[3], group))


def coded_values(x: Tensor, valid: Tensor | None, levels: int, group: int) -> Coded:
    """Values ``x`` (B, H, n, d) with 3 or 4 ``levels`` in every channel; else as ``coded_keys``."""
    code = {3: ternary, 4: two_bits}[levels]
    return Coded(
        _held("", code(*_grouped(x.float(), valid, group)), levels), partial(_values, x.shape[2], group, levels)
    )


def by_range(x: Tensor, valid: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """(B, h) the ``count`` channels of largest range over heads and tokens of each row of ``x`` (B, H, n, d), and the rest."""
    low, high = x, x
    if valid is not None:
        low, high = (x.masked_fill(~valid[:, None, :, None], bound) for bound in (torch.inf, -torch.inf))
    spread = high.amax(dim=(1, 2)) - low.amin(dim=(1, 2))
    order = torch.ones_like(spread, dtype=torch.uint8).scatter_(1, top_k(spread, count), 0).argsort(dim=1, stable=True)
    return order[:, :count], order[:, count:]


def coefficients(x: Tensor) -> Tensor:
    """(..., e) the real Fourier coefficients of the channels (..., e): real parts, then what imaginary parts are not zero."""
    found = torch.fft.rfft(x, dim=-1, norm="ortho")
    return torch.cat([found.real, found.imag[..., 1 : (x.shape[-1] + 1) // 2]], dim=-1)


def channels_of(waves: Tensor) -> Tensor:
    """What ``coefficients`` made ``waves`` of."""
    e = waves.shape[-1]
    real, imaginary = waves.split([e // 2 + 1, e - e // 2 - 1], dim=-1)
    imaginary = pad(imaginary, (1, real.shape[-1] - imaginary.shape[-1] - 1))
    return torch.fft.irfft(torch.complex(real, imaginary), n=e, dim=-1, norm="ortho")


def _channels(x: Tensor, index: Tensor) -> Tensor:
    """The channels ``index`` (B, h) of ``x`` (B, H, n, d)."""
    return x.gather(3, index.long()[:, None, None].expand(-1, *x.shape[1:3], -1))


def _grouped(x: Tensor, valid: Tensor | None, group: int) -> tuple[Tensor, Tensor | None]:
    """``x`` (B, H, n, d) as (B, H, d, n / group, group), and ``valid`` (B, n) beside it."""
    own = None if valid is None else valid.unflatten(1, (-1, group))[:, None, None]
    return x.transpose(2, 3).unflatten(3, (-1, group)), own


def _held(name: str, given: Quantised, levels: int) -> dict[str, Tensor]:
    held = {f"{name} codes": packed(given.codes.flatten(-2), levels), f"{name} scale": half(given.scale)}
    return held if given.minimum is None else {**held, f"{name} minimum": half(given.minimum)}


def _read(held: Mapping[str, Tensor], name: str, levels: int, n: int, group: int) -> Tensor:
    """(B, H, n, channels) float32."""
    codes = unpacked(held[f"{name} codes"], levels, n).unflatten(3, (-1, group))
    own = Quantised(codes, held[f"{name} scale"], held.get(f"{name} minimum"))
    return numbers(own, levels).flatten(3).transpose(2, 3)


def _keys(n: int, d: int, group: int, held: Mapping[str, Tensor]) -> Tensor:
    hard = held["hard"].long()
    found = [_read(held, "hard", 4, n, group)] if hard.shape[1] else []
    if hard.shape[1] < d:
        found.append(channels_of(_read(held, "soft", 2, n, group)))
    soft = torch.ones(len(hard), d, dtype=torch.uint8, device=hard.device).scatter_(1, hard, 0)
    back = soft.argsort(dim=1, stable=True).argsort(dim=1)  # where each channel stands among hard and soft
    return _channels(torch.cat(found, dim=3), back)


def _values(n: int, group: int, levels: int, held: Mapping[str, Tensor]) -> Tensor:
    return _read(held, "", levels, n, group)
