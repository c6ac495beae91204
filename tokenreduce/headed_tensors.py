"""Tensors in a safetensors file, behind a header in JSON that says what they belong to; nothing in such a file is ever run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

SUFFIX = ".safetensors"


def packed(kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The file of ``tensors`` whose ``header`` is of ``kind``; the same for equal ones."""
    from safetensors.torch import save

    return save(dict(tensors), metadata={kind: json.dumps(header, sort_keys=True)})


def unpacked(path: str | PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that ``packed`` made.

    Errors: ``ValueError``, with the kinds that there are, for a header of another one; those of safetensors for no such file.
    """
    from safetensors import safe_open

    with safe_open(Path(path), framework="pt") as file:
        found = file.metadata() or {}
        if kind not in found:
            raise ValueError(f"its header is of {', '.join(map(repr, found)) or 'no kind'}, not of {kind!r}")
        return json.loads(found[kind]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def differing(own: Any, other: Any) -> list[str]:
    """In words, in which fields the dataclass ``other`` is not as ``own``; what either does not know is none of them."""
    found = []
    for field in dataclasses.fields(own):
        ours, theirs = getattr(own, field.name), getattr(other, field.name)
        if ours not in (None, "") and theirs not in (None, "") and ours != theirs:
            found.append(f"{field.name.replace('_', ' ')} {ours!r}, not {theirs!r}")
    return found
