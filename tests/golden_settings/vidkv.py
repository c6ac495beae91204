"""VidKV: signs, three values along the channels, groups of eight with a rest and one of equal numbers, fewer protected tokens."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, best, floats, normal


def coded(x: np.ndarray, bits: float) -> tuple[list[int], float, float, list[float], list[float]]:
    """Codes of one group ``x`` (g,), its scale and minimum, the numbers they stand for, and those as released."""
    if bits == 2:
        low = x.min()
        scale = (x.max() - low) / 3 or 1.0
        codes = [round((value - low) / scale) for value in x]
        back = [low + code * scale for code in codes]
        return codes, scale, low, back, back
    scale = abs(x).mean()
    if bits == 1:
        codes = [int(value >= 0) for value in x]
        return codes, scale, 0.0, [scale if code else -scale for code in codes], [code * scale for code in codes]
    codes = [1 + int(value > scale / 2) - int(value < -scale / 2) for value in x]
    return codes, scale, 0.0, [(code - 1) * scale for code in codes], [code - 1.0 for code in codes]


def along(rows: np.ndarray, bits: float, group: int) -> dict[str, np.ndarray]:
    """Every group of the last axis of ``rows`` (R, n); what is behind the last whole one stays."""
    whole = rows.shape[1] // group * group
    found = {"codes": np.zeros((len(rows), whole), dtype=np.int64)}
    found |= {name: np.zeros((len(rows), whole // group)) for name in ("scale", "minimum")}
    found |= {name: rows.copy() for name in ("dequantised", "dequantised_reference")}
    for r in range(len(rows)):
        for g in range(whole // group):
            own = slice(g * group, (g + 1) * group)
            codes, scale, low, text, released = coded(rows[r, own], bits)
            found["codes"][r, own], found["scale"][r, g], found["minimum"][r, g] = codes, scale, low
            found["dequantised"][r, own], found["dequantised_reference"][r, own] = text, released
    return found


def quantise(batch: int, n: int, d: int, bits: float, axis: int, group: int, flat: bool = False) -> Case:
    states = normal(batch, 2, n, d, seed=n)
    if flat:
        states[0, 0, :group] = states[0, 0, :1]
    rows = states.astype(np.float64)
    rows = rows.swapaxes(2, 3) if axis == -1 else rows
    found = along(rows.reshape(-1, rows.shape[-1]), bits, group)
    expected = {name: x.reshape(*rows.shape[:3], -1) for name, x in found.items() if name != "minimum" or bits == 2}
    for name in ("dequantised", "dequantised_reference"):
        expected[name] = expected[name].swapaxes(2, 3) if axis == -1 else expected[name]
    expected = {name: x if name == "codes" else floats(x) for name, x in expected.items()}
    return {"states": states}, {"function": "quantise", "bits": bits, "axis": axis, "group": group}, expected


def values(n: int, visual: int, ratio: float, offset: int, group: int) -> Case:
    """Protected tokens with two bits, all others with three values, each side in groups of its own in order of place."""
    states, vision, text = normal(1, 2, n, 6, seed=80), normal(visual, 5, seed=81), normal(4, 5, seed=82)
    score = vision.astype(np.float64) @ text.astype(np.float64).mean(axis=0)
    k = max(group, int(visual * ratio / group) * group)
    protected = [i + offset for i in sorted(best(list(score), k))[: k - group]]
    outs = [states[0].astype(np.float64) for _ in range(2)]
    for bits, at in ((2, protected), (1.58, [i for i in range(n) if i not in protected])):
        for head in range(2):
            found = along(outs[0][head, at].T.copy(), bits, group)
            for out, name in zip(outs, ("dequantised", "dequantised_reference")):
                out[head, at] = found[name].T
    params = {"function": "values", "ratio": ratio, "offset": offset, "group": group}
    expected = {name: floats(out)[None] for name, out in zip(("dequantised", "dequantised_reference"), outs)}
    return {"states": states, "vision": vision, "text": text}, params, {"protected": np.array(protected), **expected}


def cases() -> dict[str, Case]:
    return {
        "signs": quantise(2, 32, 5, 1, -1, 16),
        "three_values_along_channels": quantise(1, 7, 24, 1.58, 0, 8),
        "two_bits_with_a_rest_and_equal_numbers": quantise(2, 27, 5, 2, -1, 8, flat=True),
        "values": values(60, 44, 0.4, 9, 8),
    }
