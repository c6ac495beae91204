"""Thresholds per block that were found on pictures, with what they belong to: a small file, and what it is checked against."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from tokenreduce.files import writing
from tokenreduce.headed_tensors import SUFFIX, differing, packed, unpacked
from tokenreduce.model_facts import ModelFacts

KIND = "tokenreduce calibration"
SUFFIXES = (".json", SUFFIX)
NAME = "thresholds"  # of the tensor in a safetensors file


@dataclass(frozen=True)
class Tower:
    """What thresholds belong to, as far as it is known.

    Attributes:
        type: ``model_type`` of its configuration, or its class.
        blocks: up to the one whose output is used; ``width``, channels of a row; ``prefix``, rows in front of the patches.
        patches_per_token: patches that merge as one; ``tokens``, of an image, where that is fixed.
    """

    type: str
    blocks: int
    width: int | None
    prefix: int
    patches_per_token: int
    tokens: int | None

    @classmethod
    def of(cls, facts: ModelFacts) -> Tower:
        return cls(
            facts.tower_type,
            facts.feature_block + 1,
            facts.tower_width or None,
            facts.tower_prefix,
            facts.patches_per_token,
            facts.tokens_per_image,
        )


@dataclass(frozen=True, repr=False)
class Calibration:
    """Thresholds of one tower.

    Attributes:
        thresholds: of block 0, 1, ...; from 1 on, nothing merges there.
        tower: what they belong to; None: not known, as of a list.
        keep, schedule: the mean number of tokens they were found for, and how merges were spread over the blocks.
        views: what of images the tower was shown; ``corpus``, a SHA-256 of their pixels, ``batch`` by batch, at ``dtype``.
        kept: the mean number of tokens that were left of a view while they were found.
    """

    thresholds: tuple[float, ...]
    tower: Tower | None = None
    keep: float | int | None = None
    schedule: str = ""
    views: int = 0
    kept: float = 0.0
    corpus: str = ""
    batch: int = 0
    dtype: str = ""

    def __post_init__(self) -> None:
        if not self.thresholds or not all(_is_threshold(value) for value in self.thresholds):
            raise ValueError(
                f"thresholds={list(self.thresholds)!r}; allowed: one number in [-1, 1] per block of the vision tower, 1 where "
                "nothing is to merge"
            )

    def __repr__(self) -> str:
        of = "" if self.tower is None else f" of {self.tower.type}, keep={self.keep!r}"
        return f"<{len(self.thresholds)} thresholds{of}>"

    @classmethod
    def of(cls, given: Calibration | str | PathLike[str] | Mapping[Any, Any] | Sequence[float]) -> Calibration:
        """From itself, a file, its content, or thresholds: in order, or by block, where blocks left out merge nothing.

        Errors: ``TypeError`` and ``ValueError``, with what is allowed.
        """
        if isinstance(given, Calibration):
            return given
        if isinstance(given, (str, PathLike)):
            return read(given)
        if isinstance(given, Mapping):
            if NAME in given:
                return _of_content(given, "calibration")
            if given and all(isinstance(block, int) and block >= 0 for block in given):
                return cls(tuple(given.get(block, 1.0) for block in range(max(given) + 1)))
        else:
            with suppress(TypeError):
                return cls(tuple(given))
        raise TypeError(
            f"calibration={given!r}; allowed: a file that tokenreduce calibrate wrote, its content, a list of thresholds, one "
            "per block, or a dictionary of them by block, such as {0: 0.92, 5: 0.9}"
        )

    def check(self, method: str, facts: ModelFacts) -> None:
        """Raise where these thresholds are not those of the tower of a model with ``facts``."""
        depth = facts.feature_block + 1
        differs = [] if self.tower is None else differing(self.tower, Tower.of(facts))
        if differs:
            raise ValueError(
                f"method={method!r}: the calibration belongs to another vision tower than that of this {facts.family} model: "
                f"{'; '.join(differs)}. Find thresholds for this one: tokenreduce calibrate MODEL --method {method} ..."
            )
        if not depth <= len(self.thresholds) <= max(facts.tower_depth, depth):
            raise ValueError(
                f"method={method!r}: {len(self.thresholds)} thresholds for the {depth} blocks of this {facts.family} model's "
                f"vision tower that lead to its features; allowed: {depth}"
                + (f" to {facts.tower_depth}" * (facts.tower_depth > depth))
                + ". In a dictionary name the last block, with 1.0 where nothing is to merge"
            )

    def content(self) -> dict[str, Any]:
        """What a file holds."""
        return {"kind": KIND, **dataclasses.asdict(self), NAME: list(self.thresholds)}

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write a .json or .safetensors file, whole or not at all.

        Errors: ``FileExistsError`` where it is there, unless ``overwrite``; ``ValueError`` for another ending, or no folder.
        """
        content = self.content()
        path = Path(path)
        with writing(path, SUFFIXES, overwrite) as file:
            if path.suffix.lower() == ".json":
                file.write((json.dumps(content, indent=2) + "\n").encode())
                return
            values = torch.tensor(content.pop(NAME), dtype=torch.float64)
            file.write(packed(KIND, content, {NAME: values}))


def read(path: str | PathLike[str]) -> Calibration:
    """The file that ``Calibration.save`` wrote.

    Errors: ``ValueError`` for no file, or another one.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"calibration={str(path)!r} is no file; make one with tokenreduce calibrate MODEL --images FOLDER --keep 64 --out "
            f"{path.name or 'thresholds.json'}"
        )
    try:
        if path.suffix.lower() == SUFFIX:
            header, tensors = unpacked(path, KIND)
            content = header | {NAME: tensors[NAME].tolist()}
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
        if content["kind"] != KIND:
            raise ValueError
    except Exception as error:  # safetensors raises its own kind of error
        raise ValueError(
            f"calibration={str(path)!r} does not hold thresholds; allowed: a .json or .safetensors file that tokenreduce "
            "calibrate or Calibration.save wrote"
        ) from error
    return _of_content(content, str(path))


def _of_content(content: Mapping[Any, Any], where: str) -> Calibration:
    known = {field.name for field in dataclasses.fields(Calibration)}
    given = {name: value for name, value in content.items() if name != "kind"}
    try:
        tower = given.get("tower")
        made = {**given, NAME: tuple(given[NAME]), "tower": None if tower is None else Tower(**tower)}
    except TypeError:
        made = {"": None}
    if unknown := set(made) - known:
        raise ValueError(
            f"{where}: {sorted(map(str, unknown))} is no part of a calibration; it has: {', '.join(sorted(known))}"
        )
    return Calibration(**made)


def _is_threshold(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and -1.0 <= value <= 1.0
