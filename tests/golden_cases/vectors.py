"""Golden vectors on disk: finding them, reading them, comparing with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Largest deviation, relative to the value and to the largest value of the array. The library computes in float32; six
#: layers in float32 differ from the same in float64 by 1e-5, and ten times that is allowed. A float16 array carries its
#: own rounding of 5e-4, four times that is allowed.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-3}


@dataclass(frozen=True)
class Vector:
    """One ``npz``: inputs and expected outputs by name without ``in_`` / ``out_``, and the parameters."""

    inputs: dict[str, Tensor]
    params: dict[str, Any]
    expected: dict[str, np.ndarray]


def find(folder: Path) -> dict[str, Path]:
    """Vectors of ``folder`` by ``<method>/<case>``."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(folder.glob("*/*.npz"))}


def load(path: Path) -> Vector:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(arrays.pop("meta").item())
    unknown = [name for name in arrays if not name.startswith(("in_", "out_"))]
    if unknown:
        raise ValueError(f"{path} holds {unknown}; allowed: meta, in_*, out_*")
    return Vector(
        inputs={name[3:]: torch.from_numpy(a) for name, a in arrays.items() if name.startswith("in_")},
        params=meta["params"],
        expected={name[4:]: a for name, a in arrays.items() if name.startswith("out_")},
    )


def differences(
    expected: Mapping[str, np.ndarray], found: Mapping[str, Tensor], unordered: Collection[str] = ()
) -> list[str]:
    """One line per expected array that ``found`` misses or contradicts; empty when everything agrees."""
    lines = []
    for name, wanted in expected.items():
        if name not in found:
            lines.append(f"out_{name}: not produced; the driver gives {sorted(found)}")
        elif (line := difference(wanted, found[name].detach().numpy(), name in unordered)) is not None:
            lines.append(f"out_{name}: {line}")
    return lines


def difference(wanted: np.ndarray, got: np.ndarray, unordered: bool = False) -> str | None:
    """What is wrong with ``got``; None when nothing is. Integers and truth values must agree exactly."""
    kinds = {"i": "integer", "u": "integer", "b": "bool", "f": "float"}
    if wanted.shape != got.shape:
        return f"expected shape {wanted.shape}, got {got.shape}"
    if kinds[wanted.dtype.kind] != kinds[got.dtype.kind]:
        return f"expected {wanted.dtype}, got {got.dtype}"
    if wanted.size == 0:
        return None
    if wanted.dtype.kind == "f":
        tolerance = TOLERANCE[wanted.dtype.name]
        a, b = wanted.astype(np.float64), got.astype(np.float64)
        wrong = ~np.isclose(b, a, rtol=tolerance, atol=tolerance * np.abs(a).max(), equal_nan=True)
    else:
        a, b = (np.sort(wanted, axis=-1), np.sort(got, axis=-1)) if unordered else (wanted, got)
        wrong = a != b
    if not wrong.any():
        return None
    at = tuple(int(i[0]) for i in wrong.nonzero())
    return f"{int(wrong.sum())} of {wrong.size} values differ, first at {at}: expected {a[at]}, got {b[at]}"
