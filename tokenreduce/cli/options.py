"""Options that several commands share: which model, which methods, which prompt."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Positions(StrEnum):
    keep = "keep"
    renumber = "renumber"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Model = Annotated[str, typer.Option(help="Local folder, hub id, or `demo` for the built-in model.")]
Methods = Annotated[
    list[str],
    typer.Option(
        help="Name, or name:keep; one of your own is ./mine.py:Mine. Give it several times to compose methods in that order."
    ),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="<place>", help="A module or file that defines methods of your own; may be repeated."
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", exists=True, help="A picture, or a folder of pictures; may be repeated. Optional for the demo model."
    ),
]
Videos = Annotated[
    list[Path] | None,
    typer.Option("--video", exists=True, help="A video, an animated picture, or a folder of frames; may be repeated."),
]
Frames = Annotated[int, typer.Option(min=1, help="Frames taken of each video, evenly spread.")]
Prompt = Annotated[str | None, typer.Option(help="The question. Optional for the demo model.")]
Keep = Annotated[
    str | None,
    typer.Option(help="Budget of a single method: a fraction such as 0.33, 1/3 or 1.0, a count such as 64, or auto."),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameter", "-p", help="Another parameter, key=value; method.key=value when composing."),
]
PositionIds = Annotated[
    Positions | None,
    typer.Option(metavar="<ids>", help="Position ids of kept tokens: keep, or renumber. [default: the method's]"),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")]
DtypeName = Annotated[
    Dtype, typer.Option(metavar="<dtype>", help="float32, float16, bfloat16, or auto: as stored, float32 on a CPU.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
Attention = Annotated[str, typer.Option(help="Attention backend: sdpa, eager, flash_attention_2.")]
