"""Pictures and videos from files: upright, in RGB, the same for every command and task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

Video = Sequence[Image.Image]  # its frames
DECODERS = {"av": "pyav", "decord": "decord", "torchcodec": "torchcodec", "cv2": "opencv"}  # by what is imported


def as_rgb(picture: Image.Image) -> Image.Image:
    """``picture`` in RGB, turned upright as its EXIF orientation says.

    Greys of 16 bits and more have no agreed white: they are scaled from the lowest to the highest value of the picture.
    """
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
        values = np.nan_to_num(np.asarray(upright, dtype=np.float64))
        low, high = values.min(), values.max()
        upright = Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8))
    return upright.convert("RGB")


def open_picture(path: str | Path) -> Image.Image:
    """The picture in the file ``path``, as ``as_rgb`` says. Errors: ``ValueError`` where it holds none."""
    try:
        with Image.open(path) as opened:
            return as_rgb(opened)
    except (UnidentifiedImageError, OSError):
        raise ValueError(f"{str(path)!r} is not a picture that Pillow can read; give a PNG or JPEG") from None


def open_pictures(path: str | Path) -> list[Image.Image]:
    """The picture in the file ``path``, or all in the folder ``path``, by name, ``2.png`` before ``10.png``.

    Errors: ``ValueError`` for a folder without pictures and for a file, ending like a picture, that holds none.
    """
    path = Path(path)
    if not path.is_dir():
        return [open_picture(path)]
    endings = Image.registered_extensions()
    names = [file for file in path.iterdir() if file.suffix.lower() in endings]
    if not names:
        raise ValueError(f"{str(path)!r} is a folder without pictures; give one that holds PNG or JPEG files")
    return [open_picture(file) for file in sorted(names, key=_counted)]


def open_video(path: str | Path, count: int = 8) -> list[Image.Image]:
    """``count`` frames, evenly spread, of a video: a file, an animated picture, or a folder with its frames by name.

    All frames where there are no more.

    Errors: ``ValueError`` for a file that no installed decoder reads, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"frames={count}; allowed: an int >= 1, the frames taken of a video")
    path = Path(path)
    if path.is_dir():
        return _spread(open_pictures(path), count)
    try:
        with Image.open(path) as opened:
            wanted = set(_spread(range(getattr(opened, "n_frames", 1)), count))
            return [as_rgb(frame) for number, frame in enumerate(ImageSequence.Iterator(opened)) if number in wanted]
    except (UnidentifiedImageError, OSError):
        return _decoded(path, count)


def _decoded(path: Path, count: int) -> list[Image.Image]:
    from transformers.video_utils import load_video

    backend = next((name for module, name in DECODERS.items() if find_spec(module)), None)
    if backend is None:
        raise ValueError(
            f"{str(path)!r} needs a video decoder; pip install av, or give a folder with its frames or an animated GIF"
        )
    try:
        frames, _ = load_video(
            cast(Any, str(path)), sample_indices_fn=lambda metadata, **_: _spread(range(metadata.total_num_frames), count),
            backend=backend,
        )  # fmt: skip
    except Exception as error:  # every decoder has its own
        raise ValueError(
            f"{str(path)!r} is not a video that {backend} can read ({type(error).__name__}: {str(error)[:200]}); give an "
            "MP4 or WebM file, an animated GIF, or a folder with its frames"
        ) from error
    return [Image.fromarray(np.asarray(frame)) for frame in frames]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` of ``items``, each from the middle of an equal stretch; all where there are no more."""
    n = len(items)
    return list(items) if n <= count else [items[(2 * i + 1) * n // (2 * count)] for i in range(count)]


def _counted(file: Path) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by their size."""
    parts = cast(list[str], re.findall(r"\d+|\D+", file.name))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
