"""A video read in chunks and its cache pooled, beside what leaves as many tokens in front of the language model.

python benchmarks/pooled_cache.py [--videos 40]    (writes results/pooled_cache.json and the table of docs/methods/video_xl_2.md)

The videos of ``video.py``: eight frames, 1,152 visual tokens, asked of the demo model, which takes the frames as images. Frames
are few, so that blocks are of one frame and one unit of two is relevant: the first, the last and that of the unit stay whole.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

import tokenreduce as tr
from tokenreduce.eval import demo
from tokenreduce.eval.demo.video import FRAMES, VideoQuestion, answer_videos, video_questions
from tokenreduce.eval.results import environment, write_json
from tokenreduce.methods.video_xl_2 import VideoXL2

HERE = Path(__file__).resolve().parent
DATA, PAGE = HERE / "results/pooled_cache.json", HERE.parent / "docs/methods/video_xl_2.md"
BEGIN, END = "<!-- pooled_cache -->\n", "<!-- end -->"
WHOLE = FRAMES * 144
CHUNKS = {"chunks of 4 frames, 3 before": (4, 3), "chunks of 2, 1 before": (2, 1), "chunks of 1, none before": (1, 0)}
RUNS = (4, 9, 36)


def arms() -> dict[str, tuple[Any, bool]]:
    """Method, and whether it is shown the frames together; ``None``: all tokens."""
    found: dict[str, tuple[Any, bool]] = {"all tokens": (None, False)}
    for name, (size, before) in CHUNKS.items():
        found[name] = VideoXL2(block_size=size, previous=before, selected_units=()), True
    for run in RUNS:
        pooled = VideoXL2(block_size=None, chunk_size=1, run=run, topk=1)
        found[f"pooled by {run}"] = pooled, True
        found[f"pooled by {run}, ids from the cache's length"] = replace(pooled, suffix_positions="cache_length"), True
    return found


def measured(model: Any, processor: Any, asked: list[VideoQuestion], bar: Progress) -> list[dict[str, Any]]:
    """A row for each arm, and for what leaves as many tokens as each pooled one does in the mean."""
    rows: list[dict[str, Any]] = []

    def ask(name: str, method: Any, as_video: bool) -> None:
        task, kept = bar.add_task(name, total=len(asked)), list[int]()

        def advance() -> None:
            bar.advance(task)
            kept.append(WHOLE if method is None else sum(tr.report(model).tokens_kept[0]))

        row = asdict(answer_videos(model, processor, asked, name, method, as_video, advance))
        rows.append(row | {"tokens": sum(kept) / len(kept)})

    for name, (method, as_video) in arms().items():
        ask(name, method, as_video)
        if name in {f"pooled by {run}" for run in RUNS}:
            tokens = rows[-1]["tokens"]
            for other in (tr.Uniform, tr.FasterVLM):
                ask(f"{other.name}, as many as {name}", other(keep=tokens / WHOLE), False)
    return rows


def table(found: dict[str, Any]) -> str:
    lines = ["| what is read | visual tokens in the cache, mean | right | 95 % interval |", "| --- | --- | --- | --- |"]
    for row in found["rows"]:
        low, high = row["interval"]
        lines.append(f"| {row['arm']} | {row['tokens']:,.0f} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} |")
    at = found["environment"]
    about = (
        f"{found['rows'][0]['questions']} questions about {found['videos']} videos, `python benchmarks/pooled_cache.py`, torch "
        f"{at['torch']}, transformers {at['transformers']} ([data](../../benchmarks/results/pooled_cache.json))."
    )
    return "\n" + "\n".join(lines) + f"\n\n{about}\n\n"


def page(text: str, found: dict[str, Any]) -> str:
    """The page ``text`` with its table as ``found`` has it."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table(found) + END + rest.partition(END)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--page", action="store_true", help="write the table only, from the data")
    options = parser.parse_args()
    if not options.page:
        model, processor = demo.load()
        with Progress() as bar:
            rows = measured(model, processor, video_questions(options.videos, per_video=4), bar)
        about = {"frames": FRAMES, "videos": options.videos, "environment": environment(model)}
        write_json(DATA, {"rows": rows, **about})
    PAGE.write_text(page(PAGE.read_text(), json.loads(DATA.read_text())))


if __name__ == "__main__":
    main()
