"""VidKV: numbers of few bits in groups, keys, and values with protected tokens; with scales as in the text, and as released."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.channel_coding import by_range, coded_keys, coded_values
from tokenreduce.few_bits import Quantised, numbers, packed, signs, ternary, two_bits, unpacked
from tokenreduce.kernels.top_k import top_k
from tokenreduce.methods.vidkv import hard_count, protected_count, relevance

CODES = {1: (signs, 2), 1.58: (ternary, 3), 2: (two_bits, 4)}


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    function = params.one_of("function", {"quantise": quantise, "keys": keys, "values": values}, "quantise")
    return function(inputs["states"].float(), inputs, params)


def released(given: Quantised, levels: int) -> Tensor:
    """As the release reads codes back: signs as 0 and s, three values without their scale."""
    if levels == 4:
        return numbers(given, levels)
    return given.codes * given.scale[..., None] if levels == 2 else given.codes.float() - 1


def quantise(x: Tensor, inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    group, code = params.get("group", 32), params.one_of("bits", CODES, 2)
    per_channel = params.one_of("axis", {-1: True, 0: False}, -1)
    rows = x.transpose(2, 3) if per_channel else x
    whole = rows.shape[3] // group * group
    given = code[0](rows[..., :whole].unflatten(3, (-1, group)))
    codes = given.codes.flatten(3)
    assert torch.equal(unpacked(packed(codes, code[1]), code[1], whole), codes)
    found = {"codes": codes.long(), "scale": given.scale}
    if given.minimum is not None:
        found["minimum"] = given.minimum
    for name, read in (("dequantised", numbers), ("dequantised_reference", released)):
        back = torch.cat([read(given, code[1]).flatten(3), rows[..., whole:]], dim=3)
        found[name] = back.transpose(2, 3) if per_channel else back
    return found


def keys(x: Tensor, inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """The release takes one list of channels for all items: they stand side by side, as more heads of one row."""
    group, (batch, heads, n, d) = params.get("group", 32), x.shape
    together, count = x.reshape(1, batch * heads, n, d), hard_count(d, params["bits"])
    whole = n // group * group
    rows = together[:, :, :whole]
    hard, soft = (index[0] for index in by_range(rows, None, count))
    coded = coded_keys(rows, None, count, group)
    half_scales = coded.numbers()
    text, reference = together.clone(), together.clone()
    own = numbers_of(rows[..., hard], two_bits, 4, group)
    text[:, :, :whole, hard] = reference[:, :, :whole, hard] = own
    waves = torch.fft.fft(rows[..., soft], dim=-1)
    for out, read in ((text, numbers), (reference, released)):
        both = [numbers_of(part, signs, 2, group, read) for part in (waves.real, waves.imag)]
        out[:, :, :whole, soft] = torch.fft.ifft(torch.complex(*both), dim=-1).real
    # what a cache holds is the same but for scales in float16
    torch.testing.assert_close(half_scales, text[:, :, :whole], atol=2e-3 * float(text.abs().max()), rtol=0)
    found = {"dequantised": text, "dequantised_reference": reference}
    return {name: out.view_as(x) for name, out in found.items()} | {"hard_channels": hard}


def numbers_of(x: Tensor, code: Any, levels: int, group: int, read: Any = numbers) -> Tensor:
    """(.., n, d) what codes of ``x`` in groups of tokens stand for."""
    given = code(x.transpose(-1, -2).unflatten(-1, (-1, group)))
    return read(given, levels).flatten(-2).transpose(-1, -2)


def values(x: Tensor, inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """The release drops the last group of the protected ones, in order of place."""
    group, n = params.get("group", 32), len(inputs["vision"])
    score = relevance(inputs["vision"][None].float(), inputs["text"].float().mean(dim=0)[None])
    k = min(protected_count(n, params["ratio"], group), n)
    protected = top_k(score, k)[0].sort().values[: max(k - group, 0)] + params.get("offset", 0)
    special = torch.zeros(x.shape[2], dtype=torch.bool).index_fill_(0, protected, True)
    text, reference = x.clone(), x.clone()
    for side, code, levels in ((special, two_bits, 4), (~special, ternary, 3)):
        at = side.nonzero().flatten()
        at = at[: len(at) // group * group]
        if not len(at):
            continue
        rows = x[:, :, at]
        text[:, :, at] = numbers_of(rows, code, levels, group)
        reference[:, :, at] = numbers_of(rows, code, levels, group, released)
        half_scales = coded_values(rows, None, levels, group).numbers()
        torch.testing.assert_close(half_scales, text[:, :, at], atol=2e-3 * float(text.abs().max()), rtol=0)
    return {"protected": protected, "dequantised": text, "dequantised_reference": reference}
