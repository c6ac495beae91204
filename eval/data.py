"""The demo sets as parquet files, made on first use and kept: nothing is downloaded."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenreduce.files import cache_folder

from .demo.scene_questions import questions
from .demo.video import video_questions

VERSION = 1  # of the content: a change makes new files
SETS = {
    "images": "120 pictures with 1 to 5 objects, 6 questions each",
    "crowd": "60 pictures with 8 objects, 6 questions each",
    "video": "25 videos of 8 frames, 6 questions each",
}


def folder() -> Path:
    """Where the files are: the environment variable TOKENREDUCE_DATA, or the user's cache."""
    chosen = os.environ.get("TOKENREDUCE_DATA")
    return Path(chosen) if chosen else cache_folder()


def documents(name: str) -> Iterator[tuple[tuple[Any, ...], str, str, str]]:
    """(pictures, question, answer, kind) of a set, in order: every question of a picture before the next picture."""
    if name == "video":
        for video in video_questions(25):
            yield video.frames, video.question, video.answer, video.kind
    else:
        split, count = {"images": ("test", 120), "crowd": ("hard", 60)}[name]
        for asked in questions(split, count, per_image=6):
            yield (asked.image,), asked.question, asked.answer, asked.kind


def parquet(name: str) -> Path:
    """The file of a set, made if it is not there; never half written.

    Columns: pictures (PNG bytes, features of ``datasets``), question, answer, kind.
    """
    place = folder() / f"{name}-v{VERSION}.parquet"
    if place.is_file():
        return place
    from datasets import Dataset, Features, Image, List, Value

    rows: dict[str, list[Any]] = {"pictures": [], "question": [], "answer": [], "kind": []}
    packed: dict[int, dict[str, Any]] = {}
    for pictures, *texts in documents(name):
        for picture in pictures:
            if id(picture) not in packed:
                buffer = io.BytesIO()
                picture.save(buffer, "PNG", compress_level=1)
                packed[id(picture)] = {"bytes": buffer.getvalue(), "path": None, "alive": picture}
        rows["pictures"].append([{k: packed[id(p)][k] for k in ("bytes", "path")} for p in pictures])
        for column, text in zip(("question", "answer", "kind"), texts):
            rows[column].append(text)
    text_columns = {column: Value("string") for column in ("question", "answer", "kind")}
    made = Dataset.from_dict(rows, features=Features({"pictures": List(Image()), **text_columns}))
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    os.close(handle)
    try:
        made.to_parquet(temporary)
        os.replace(temporary, place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return place
