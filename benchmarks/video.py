"""A short synthetic video task: what temporal merging keeps that an even grid per frame loses.

python benchmarks/video.py [--videos 40] [--out benchmarks/results/video.json]
python benchmarks/video.py --long [--frames 128 1024] [--out benchmarks/results/long_videos.json]

Eight frames from a still camera, one object appears on the way; 1,152 visual tokens unreduced. The demo model takes the
frames as images. Every question can be answered from the last frame.

``--long``: methods on features of long videos on a CPU, against loops over frames and places that do the same, and may differ in
near ties only; and the largest tensor that a method makes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from plain_video import PLAIN
from rich.progress import Progress
from torch.profiler import ProfilerActivity, profile

from tokenreduce.eval import demo
from tokenreduce.eval.bench.ops.holitom import footage
from tokenreduce.eval.bench.timing import LargestTensor, take_turns
from tokenreduce.eval.demo.video import FRAMES, answer_videos, arms, video_questions
from tokenreduce.eval.results import environment, surroundings, write_json
from tokenreduce.layout import Layout
from tokenreduce.registry import registry
from tokenreduce.signals import AttentionReceived, Signal
from tokenreduce.tokens import VisualTokens

RESULTS = Path(__file__).parent / "results"
PLACES, CHANNELS = 196, 64
#: steps that act in front of the language model, by features and attention alone
GIVEN: dict[str, dict[str, Any]] = {"longvlm": {"global_tokens": 0}}


def long_videos(lengths: list[int], rounds: int, out: Path) -> None:
    """Time and memory of methods and plain loops, ``rounds`` of each, taking turns."""
    device, rows = torch.device("cpu"), []
    for frames in lengths:
        torch.manual_seed(0)
        x = footage(frames, PLACES, device)[..., :CHANNELS].contiguous()
        for name, plain in PLAIN.items():
            rows.append(against_loops(name, plain, x, rounds, device))
            print(rows[-1])
    about = {"places": PLACES, "channels": CHANNELS, "rounds": rounds, "threads": torch.get_num_threads()}
    write_json(out, {"rows": rows, **about, "environment": surroundings(device)})


def against_loops(name: str, plain: Any, x: torch.Tensor, rounds: int, device: torch.device) -> dict[str, Any]:
    frames = len(x)
    method, attention = registry()[name](**GIVEN.get(name, {})), torch.rand(frames, PLACES)
    signals: dict[Signal, torch.Tensor] = {AttentionReceived(0): attention.flatten()[None]}
    layout = Layout(14, 14, frames=frames)
    heard = signals if "attention" in method.looks_at else {}
    video = VisualTokens(x.flatten(0, 1)[None], layout, signals=heard, amount=(0, 0))
    kept = set(method.reduce(video).source[0].tolist())
    wanted = set(plain(x, attention, len(kept)))
    arms = {"ours": lambda: method.reduce(video), "plain": lambda: plain(x, attention, len(kept))}
    seconds = take_turns(arms, rounds, device)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["plain"])]
    with LargestTensor() as largest:
        method.reduce(video)
    return {
        "method": name,
        "frames": frames,
        "ours_s": median(seconds["ours"]),
        "plain_s": median(seconds["plain"]),
        "times": median(ratios),
        "spread": [min(ratios), max(ratios)],
        "largest_tensor_mib": largest.bytes / 2**20,
        "input_mib": x.nbytes / 2**20,
        "kept": len(kept),
        "others_kept": len(kept - wanted),
        "products": share_of_products(arms["ours"]),
    }


def share_of_products(run: Any) -> float:
    """Of the time that operations take in ``run``, the share of matrix products."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    return sum(spent.get(f"aten::{name}", 0) for name in ("mm", "bmm", "addmm", "baddbmm")) / sum(spent.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--frames", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.long:
        long_videos(options.frames, options.rounds, options.out or RESULTS / "long_videos.json")
        return
    model, processor = demo.load()
    asked = video_questions(options.videos, per_video=4)
    rows = []
    with Progress() as bar:
        task = bar.add_task("", total=len(asked) * len(arms()))
        for name, (method, as_video) in arms().items():
            bar.update(task, description=name)
            rows.append(answer_videos(model, processor, asked, name, method, as_video, lambda: bar.advance(task)))
    write_json(
        options.out or RESULTS / "video.json",
        {"rows": [asdict(row) for row in rows], "frames": FRAMES, "environment": environment(model)},
    )
    for row in rows:
        print(f"{row.arm:<22} {row.accuracy:.3f} {row.interval} {row.tokens_last_layer}")


if __name__ == "__main__":
    main()
