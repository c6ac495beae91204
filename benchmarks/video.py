"""A short synthetic video task: what temporal merging keeps that dropping per frame loses.

python benchmarks/video.py [--videos 40] [--out benchmarks/results/video.json]

Eight frames from a still camera, one object appears on the way; 1,152 visual tokens unreduced. The demo model takes the
frames as images. Every question can be answered from the last frame.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.progress import track

import tokenreduce as tr
from tokenreduce.eval import demo
from tokenreduce.eval.demo.bench import wilson
from tokenreduce.eval.demo.video import VideoQuestion, video_prompt, video_questions
from tokenreduce.eval.results import environment, write_json

FRAMES = 8
ARMS = {
    "all tokens": (None, False),
    "uniform per frame": (tr.Uniform(keep=0.15, positions="renumber"), False),
    "fastervlm per frame": (tr.FasterVLM(keep=0.15, positions="renumber"), False),
    "pool over the video": (tr.Pool(keep=0.15, positions="renumber"), True),
    "holitom, entry only": (tr.HoliTom(keep=0.15, inner_keep=1.0, positions="renumber"), True),
    "holitom": (tr.HoliTom(keep=0.15, positions="renumber"), True),
    "holitom, ids kept": (tr.HoliTom(keep=0.15, inner_keep=1.0), True),
}


def ask(model, processor, asked: list[VideoQuestion], method, as_video: bool, name: str) -> dict:
    right, report = 0, None
    with (
        nullcontext() if method is None else tr.wrapped(model, method, images_as_video=as_video),
        torch.inference_mode(),
    ):
        for question in track(asked, description=f"{name:<22}"):
            text = [video_prompt(question.question, FRAMES)]
            inputs = processor(images=list(question.frames), text=text, return_tensors="pt")
            out = model.generate(**inputs, do_sample=False)
            (reply,) = demo.replies(processor, out, inputs["input_ids"].shape[1])
            right += demo.right(reply, question.answer)
        if method is not None:
            report = tr.report(model)
    low, high = wilson(right, len(asked))
    kept = FRAMES * 144 if report is None else sum(report.tokens_kept[0])
    average = float(kept) if report is None else report.equivalent_tokens[0]
    return {
        "arm": name,
        "method": repr(method),
        "accuracy": right / len(asked),
        "interval": [low, high],
        "tokens_last_layer": kept,
        "tokens_layer_average": average,
        "questions": len(asked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/video.json")
    options = parser.parse_args()
    model, processor = demo.load()
    asked = video_questions(options.videos, FRAMES, per_video=4)
    rows = [ask(model, processor, asked, method, video, name) for name, (method, video) in ARMS.items()]
    write_json(options.out, {"rows": rows, "frames": FRAMES, "environment": environment(model)})
    for row in rows:
        print(f"{row['arm']:<22} {row['accuracy']:.3f} {row['interval']} {row['tokens_last_layer']}")


if __name__ == "__main__":
    main()
