"""``tokenreduce calibrate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, teaching
from tokenreduce.cli.options import Attention, Device, Dtype, DtypeName

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image


class Calibrated(StrEnum):
    dymu = "dymu"


class Schedule(StrEnum):
    constant = "constant"
    linear = "linear"
    reverse_linear = "reverse_linear"


@app.command()
@teaching
def calibrate(
    model: Annotated[str, typer.Argument(help="Local folder or hub id, of a whole model or an encoder, or `demo`.")],
    images: Annotated[
        Path | None, typer.Option(exists=True, help="A folder of pictures. The demo model brings its own.")
    ] = None,
    keep: Annotated[
        str, typer.Option(help="Mean number of tokens per picture: a fraction such as 0.25, or a count.")
    ] = "0.5",
    out: Annotated[Path, typer.Option(help="File to write, .json or .safetensors; never one that is there.")] = Path(
        "thresholds.json"
    ),
    method: Annotated[Calibrated, typer.Option(help="The method that reads it.")] = Calibrated.dymu,
    schedule: Annotated[Schedule, typer.Option(help="How merges are spread over the blocks.")] = Schedule.constant,
    batch: Annotated[int, typer.Option(min=1, help="Pictures told apart at once; the paper takes 64.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first pictures.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let --out replace a file.")] = False,
    dtype: DtypeName = Dtype.auto,
    device: Device = "auto",
    attention: Attention = "sdpa",
    debug: Debug = False,
) -> None:
    """Find the thresholds that DyMU merges by, on pictures like those to come, and write them to a small file.

    Only the vision tower runs. The file says which tower it belongs to, and is refused for another one. Some hundred pictures
    of the kind that the model will see are enough for a first try; simple ones will be left with fewer tokens, full ones with
    more, --keep on average.

    **Examples**

    - `tokenreduce calibrate demo --keep 0.25 --out demo.json`

    - `tokenreduce calibrate llava-hf/llava-1.5-7b-hf --images coco/val2017 --limit 2048 --keep 192 --out llava.safetensors`

    - `tokenreduce run --model demo --method dymu -p calibration=demo.json`
    """
    from rich.progress import track

    import tokenreduce as tr
    from tokenreduce.calibration import SUFFIXES
    from tokenreduce.cli.loading import load_any
    from tokenreduce.eval.recipe import budget
    from tokenreduce.files import why_not_writable
    from tokenreduce.loading import quiet

    wanted = budget(keep, "--keep")
    if isinstance(wanted, str):
        raise ValueError(
            f"--keep={keep!r}: thresholds are found for a mean number; allowed: a fraction such as 0.25, or a count such as 64"
        )
    reason = why_not_writable(out)
    if reason is None and out.suffix.lower() not in SUFFIXES:
        reason = f"allowed: a name ending in {' or '.join(SUFFIXES)}"
    if reason is None and out.exists() and not overwrite:
        reason = "it exists; choose another name, or pass --overwrite to replace it"
    if reason is not None:
        raise ValueError(f"--out={str(out)!r}: {reason}")
    if images is None and model != "demo":
        raise ValueError("--images is missing; only the demo model brings its own. For example --images photos/")
    files = _demo_pictures() if images is None else _files(images)
    files = files[:limit]
    quiet()
    network, processor = load_any(model, dtype, device, attention)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    parts = [files[i : i + batch] for i in range(0, len(files), batch)]
    shown = track(parts, "thresholds", console=console)
    found = tr.calibrate(network, _batches(network, processor, shown), keep=wanted, schedule=schedule.value)
    found.save(out, overwrite=overwrite)
    console.print(f"{len(files)} pictures, {found.kept:.1f} tokens left on average; wrote {out}", markup=False)
    console.print(f"use it: tr.wrap(model, {method.value!r}, calibration={str(out)!r})", markup=False)


def _files(folder: Path) -> Sequence[Path | Image.Image]:
    from PIL import Image

    if not folder.is_dir():
        return [folder]
    endings = Image.registered_extensions()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not found:
        raise ValueError(
            f"--images={str(folder)!r} is a folder without pictures; give one that holds PNG or JPEG files"
        )
    return found


def _demo_pictures() -> Sequence[Path | Image.Image]:
    from tokenreduce.eval.demo.scene_questions import questions

    pictures = {id(question.image): question.image for question in questions("train", 256)}
    return list(pictures.values())


def _batches(model: Any, processor: Any, parts: Any) -> Iterator[dict[str, Any]]:
    """What the model is called with, one prompt per picture."""
    from PIL import Image

    from tokenreduce.loading import picture_batch
    from tokenreduce.pictures import open_picture

    for part in parts:
        pictures = [one if isinstance(one, Image.Image) else open_picture(one) for one in part]
        yield picture_batch(processor, pictures, model)
