"""Traces as files: arrays in an .npz with their description in JSON beside them, without pickle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreduce.files import writing
from tokenreduce.layout import Layout
from tokenreduce.provenance import TENSORS, ImageTrace, StageTrace

VERSION = 1
DESCRIPTION = "trace.json"
WORDS = ("stage", "layer", "method", "role_names")


def write_images(
    path: str | Path,
    images: Sequence[ImageTrace],
    visual: Tensor,
    offset: int,
    layers: tuple[int, ...],
    choice: str = "",
    overwrite: bool = False,
) -> None:
    """Write the ``images`` of a trace to ``path`` (.npz); readers see the old file or the new one, never a part.

    The other arguments are the trace's attributes of these names.

    The archive holds one array per tensor, named like ``image0.stage1.assign``, and ``trace.json``, the description as
    UTF-8 bytes.

    Errors: as ``tokenreduce.files.writing``.
    """
    arrays: dict[str, Any] = {"visual": visual.cpu().numpy()}
    records = []
    for i, image in enumerate(images):
        arrays[f"image{i}.columns"] = image.columns.numpy()
        for j, stage in enumerate(image.stages):
            held = {name: getattr(stage, name) for name in TENSORS}
            arrays |= {f"image{i}.stage{j}.{name}": x.numpy() for name, x in held.items() if x is not None}
        stages = [{word: getattr(stage, word) for word in WORDS} for stage in image.stages]
        records.append({"sample": image.sample, "layout": dataclasses.asdict(image.layout), "stages": stages})
    about = {"version": VERSION, "offset": offset, "layers": layers, "choice": choice, "images": records}
    arrays[DESCRIPTION] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    with writing(path, (".npz",), overwrite) as file:
        np.savez_compressed(file, **arrays)


def read_images(path: str | Path) -> tuple[list[ImageTrace], Tensor, int, tuple[int, ...], str]:
    """What ``write_images`` was given: images, visual, offset, layers, choice. Errors: those of ``tr.load_trace``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r} does not exist; allowed: a file written by trace.save(path)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
        about = json.loads(bytes(arrays.pop(DESCRIPTION).numpy()))
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']}, this tokenreduce reads {VERSION}")
        images = [_image(f"image{i}", record, arrays) for i, record in enumerate(about["images"])]
        return images, arrays["visual"], about["offset"], tuple(about["layers"]), about.get("choice", "")
    except Exception as error:  # numpy, zipfile and json each have their own
        raise ValueError(
            f"path={str(path)!r} holds no trace ({type(error).__name__}: {error}); allowed: a file written by trace.save(path)"
        ) from error


def _image(name: str, record: dict[str, Any], arrays: dict[str, Tensor]) -> ImageTrace:
    stages = []
    for j, words in enumerate(record["stages"]):
        held: dict[str, Any] = {key: arrays.get(f"{name}.stage{j}.{key}") for key in TENSORS}
        words["role_names"] = tuple(words["role_names"])
        stages.append(StageTrace(**words, **held))
    return ImageTrace(record["sample"], _layout(record["layout"]), arrays[f"{name}.columns"], tuple(stages))


def _layout(record: dict[str, Any]) -> Layout:
    """A layout from its fields, the ones of its views included."""
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    if "views" in made:
        made["views"] = tuple(_layout(view) for view in made["views"])
    return Layout(**made)
