"""Golden vectors on disk: finding them, reading them whole, comparing with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

#: Largest deviation, relative to the value and to the largest value of the array. The library computes in float32; six
#: layers in float32 differ from the same in float64 by 1e-5, and ten times that is allowed. A float16 array carries its
#: own rounding of 5e-4, four times that is allowed.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-3}


#: what ``meta`` holds besides ``params``: how the vector came about, nothing a driver has to honour
ABOUT = ("method", "shapes", "notes", "seed")
V = TypeVar("V")


class Meta(Mapping[str, V]):
    """What a vector gives by name, and what of it nobody has read yet. Asking whether a name is there does not read it."""

    def __init__(self, kind: str, given: Mapping[str, V]) -> None:
        self.kind, self._given, self.unread = kind, dict(given), list(given)

    def __getitem__(self, name: str) -> V:
        value = self._given[name]
        self.unread = [other for other in self.unread if other != name]
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def starting(self, prefix: str) -> dict[str, V]:
        """All values whose names start with ``prefix``, named without it."""
        return {name[len(prefix) :]: self[name] for name in self if name.startswith(prefix)}

    def one_of(self, name: str, allowed: Collection[V] | Mapping[V, Any], default: V) -> Any:
        """A value that the driver knows, or what ``allowed`` translates it to; any other is refused by name."""
        value = self.get(name, default)
        if value not in allowed:
            raise ValueError(f"{self.kind} {name}={value!r}; this driver honours: {', '.join(map(repr, allowed))}")
        return allowed[value] if isinstance(allowed, Mapping) else value

    def agree(self, **facts: Any) -> None:
        """Read what only repeats a fact of the arrays or of other parameters; raise where it contradicts it."""
        for name, fact in facts.items():
            if name in self and self[name] != fact:
                raise ValueError(
                    f"{self.kind} {name}={self[name]!r}, but the arrays and the other parameters say {fact!r}"
                )

    def noted(self, *names: str) -> None:
        """Read what tells where the inputs were taken and changes nothing in what is done with them."""
        for name in names:
            self.get(name)


@dataclass(frozen=True)
class Vector:
    """One ``npz``: inputs and expected outputs by name without ``in_`` / ``out_``, and the parameters."""

    inputs: Meta[Tensor]
    params: Meta[Any]
    expected: dict[str, np.ndarray]

    @property
    def unread(self) -> list[str]:
        """One line per input or parameter that the driver has not looked at."""
        return [
            f"{given.kind} {name} was not read by the driver; honour it, or refuse its value by name"
            for given in (self.inputs, self.params)
            for name in given.unread
        ]


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
    if said := set(meta) - {"params", *ABOUT}:
        raise ValueError(f"meta of {path} says {sorted(said)}; allowed: params, {', '.join(ABOUT)}")
    return Vector(
        inputs=Meta("input", {n[3:]: torch.from_numpy(a) for n, a in arrays.items() if n.startswith("in_")}),
        params=Meta("parameter", meta["params"]),
        expected={name[4:]: a for name, a in arrays.items() if name.startswith("out_")},
    )


def check(method: str, vector: Vector) -> list[str]:
    """What is wrong, one line each: what the driver of ``method`` left unread, and where its outputs differ."""
    driver = import_module(f"golden_cases.{method}")
    found = driver.run(vector.inputs, vector.params)
    return vector.unread + differences(vector.expected, found, getattr(driver, "UNORDERED", ()))


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
    at = tuple(int(i[0]) for i in np.atleast_1d(wrong).nonzero())
    return f"{int(wrong.sum())} of {wrong.size} values differ, first at {at}: expected {a[at]}, got {b[at]}"
