"""A short synthetic video task: what temporal merging keeps that an even grid per frame loses.

python benchmarks/video.py [--videos 40] [--out benchmarks/results/video.json]

Eight frames from a still camera, one object appears on the way; 1,152 visual tokens unreduced. The demo model takes the
frames as images. Every question can be answered from the last frame.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.progress import Progress

from tokenreduce.eval import demo
from tokenreduce.eval.demo.video import FRAMES, answer_videos, arms, video_questions
from tokenreduce.eval.results import environment, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/video.json")
    options = parser.parse_args()
    model, processor = demo.load()
    asked = video_questions(options.videos, per_video=4)
    rows = []
    with Progress() as bar:
        task = bar.add_task("", total=len(asked) * len(arms()))
        for name, (method, as_video) in arms().items():
            bar.update(task, description=name)
            rows.append(answer_videos(model, processor, asked, name, method, as_video, lambda: bar.advance(task)))
    write_json(
        options.out,
        {"rows": [asdict(row) for row in rows], "frames": FRAMES, "environment": environment(model)},
    )
    for row in rows:
        print(f"{row.arm:<22} {row.accuracy:.3f} {row.interval} {row.tokens_last_layer}")


if __name__ == "__main__":
    main()
