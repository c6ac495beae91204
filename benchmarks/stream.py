"""An hour of video at one frame per second through ``tr.stream``: memory and time per frame, measured as it goes.

python benchmarks/stream.py [--frames 3600] [--only WAY ...] [--page]

The demo model on frames of 168 x 168 pixels, 144 tokens each: a scene a minute, sensor noise, four tokens kept of a frame, by
dycoke 36, the least it can. Every way runs in a process of its own. Memory is the peak of the resident set since the last row,
above what the process held before its first frame; beside it, bytes of all tensors alive. ``--page`` writes the figures into
docs/streaming.md, with their picture.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
import torch

import tokenreduce as tr
from tokenreduce.eval import demo
from tokenreduce.eval.results import environment, write_json

HERE = Path(__file__).resolve().parent
DATA, PAGE, PICTURE = (
    HERE / "results/stream.json",
    HERE.parent / "docs/streaming.md",
    HERE.parent / "docs/images/streaming.png",
)
TOKENS, KEPT, WINDOW, SCENE, NOISE, HISTORY = 144, 4, 16, 60, 3.0, 2048
KEEP = KEPT / TOKENS
EVERY = 5 * WINDOW  # frames between rows
#: method, its parameters, the most frames that it is run for; ``call``: numbers of frames, each in one call of its own
ARMS: dict[str, dict[str, Any]] = {
    "evs, history of 2,048 tokens": {"method": "evs", "given": {"keep": KEEP, "history": HISTORY}},
    "evs": {"method": "evs", "given": {"keep": KEEP}},
    "dycoke, history of 2,048 tokens": {"method": "dycoke", "given": {"keep": 0.25, "history": HISTORY}},
    "holitom": {"method": "holitom", "given": {"keep": KEEP, "inner_keep": 1.0}},
    "all tokens": {"method": "uniform", "given": {"keep": 1.0}, "most": 240},
    "evs, one call": {"method": "evs", "given": {"keep": KEEP}, "call": [80, 160, 240]},
}
BEGIN, END = "<!-- measured: python benchmarks/stream.py --page -->\n", "<!-- end -->\n"


def footage(frames: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    scenes = [np.asarray(q.image) for q in demo.questions("test", images=-(-frames // SCENE), per_image=1)]
    for t in range(frames):
        scene = scenes[t // SCENE]
        yield np.clip(scene + rng.normal(0, NOISE, scene.shape), 0, 255).astype(np.uint8)


def peak() -> float:
    """MiB, the most that was resident since the last call."""
    status = Path("/proc/self/status").read_text()
    found = int(status.split("VmHWM:")[1].split()[0]) / 1024
    Path("/proc/self/clear_refs").write_text("5")
    return found


def tensors() -> float:
    """MiB of all tensors alive, each storage once."""
    held = [x.untyped_storage() for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in held}.values()) / 2**20


def streamed(arm: dict[str, Any], frames: int) -> dict[str, Any]:
    model, processor = demo.load()
    asked = next(iter(demo.questions("test", images=1, per_image=1)))
    rows, answers, spent = [], [], []
    with tr.stream(model, processor, arm["method"], window=WINDOW, **arm["given"]) as stream:
        for warm in footage(WINDOW):
            stream.add(warm)
        stream.ask(asked.question, max_new_tokens=4)
    del stream
    with tr.stream(model, processor, arm["method"], window=WINDOW, **arm["given"]) as stream:
        peak()
        base, held = peak(), tensors()
        for t, frame in enumerate(footage(frames), start=1):
            start = perf_counter()
            stream.add(frame)
            spent.append(perf_counter() - start)
            if t % EVERY == 0:
                windows = [sum(spent[i : i + WINDOW]) / WINDOW for i in range(0, EVERY, WINDOW)]
                row = {"frames": t, "tokens": stream.tokens, "seconds_per_frame": median(windows)}
                rows.append({**row, "peak_mib": peak() - base, "tensors_mib": tensors() - held})
                spent.clear()
            if t % (frames // 4) == 0:
                start = perf_counter()
                stream.ask(asked.question, max_new_tokens=4)
                answers.append({"frames": t, "seconds": perf_counter() - start})
                peak()
    return {"rows": rows, "answers": answers, "environment": environment(model)}


def in_one_call(arm: dict[str, Any], frames: int) -> dict[str, Any]:
    model, processor = demo.load()
    prompt = "USER: {}\nwhat ? ASSISTANT:".format("<image>" * frames)
    with tr.wrapped(model, arm["method"], images_as_video=True, **arm["given"]), torch.no_grad():
        peak()
        base, held = peak(), tensors()
        inputs = processor(text=[prompt], images=list(footage(frames)), return_tensors="pt")
        out = model(**inputs, logits_to_keep=1)
        held_after = tensors() - held
    assert out.logits.shape[1] == 1
    return {"rows": [{"frames": frames, "peak_mib": peak() - base, "tensors_mib": held_after}]}


def measured(frames: int, only: list[str]) -> dict[str, Any]:
    """Every way, or ``only`` some anew and the others as they were."""
    before = json.loads(DATA.read_text()) if only else {"arms": {}, "environment": None}
    arms, place = before["arms"], before["environment"]
    for name in only or ARMS:
        arm = ARMS[name]
        rows: list[dict[str, Any]] = []
        for count in arm.get("call", [min(frames, arm.get("most", frames))]):
            run = [sys.executable, __file__, "--arm", name, "--frames", str(count)]
            found = json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout)
            rows += found["rows"]
        place = found.pop("environment", place)
        arms[name] = {**found, "rows": rows}
        print(name, rows[-1], flush=True)
    about = {"frames": frames, "tokens_per_frame": TOKENS, "kept_per_frame": KEPT, "window": WINDOW}
    return {"arms": {name: arms[name] for name in ARMS if name in arms}, **about, "environment": place}


def table(data: dict[str, Any]) -> str:
    lines = [
        "| way | frames | tokens in the cache | tensors, MiB | peak memory, MiB | ms a frame, first and last | answer, ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, arm in data["arms"].items():
        rows, last = arm["rows"], arm["rows"][-1]
        tokens = f"{last['tokens']:,}" if "tokens" in last else ""
        cells = [
            name,
            f"{last['frames']:,}",
            tokens,
            f"{last['tensors_mib']:.0f}",
            f"{max(r['peak_mib'] for r in rows):.0f}",
        ]
        if "answers" in arm:
            tenth = max(len(rows) // 10, 1)
            ends = (mean(r["seconds_per_frame"] for r in own) for own in (rows[:tenth], rows[-tenth:]))
            cells += [" and ".join(f"{1000 * x:.0f}" for x in ends), f"{1000 * arm['answers'][-1]['seconds']:.0f}"]
        else:
            cells += ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(data: dict[str, Any]) -> str:
    place = data["environment"]
    return (
        f"![Peak memory and time per frame over {data['frames']:,} frames](images/streaming.png)\n\n{table(data)}\n\n"
        "Memory is the resident set above that of the process before its first frame, its peak between points of the picture; "
        f"the demo model, {data['tokens_per_frame']} tokens a frame of which {data['kept_per_frame']} are kept, by dycoke 36, "
        f"windows of {data['window']} frames, {place['cpu']}, one thread of a machine that did other work, too, "
        f"torch {place['torch']}, transformers {place['transformers']}. *all tokens* and *one call* end at 240 frames. "
        "dycoke and holitom ran later, beside several other programs: their times do not compare with those of the others. Data: "
        "[stream.json](../benchmarks/results/stream.json).\n"
    )


def page(data: dict[str, Any]) -> str:
    """docs/streaming.md with the figures of ``data``."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + section(data) + END + rest.split(END)[1]


def picture(data: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    colors = dict(zip(ARMS, ("#2a6fb0", "#2a6fb0", "#4a9a5a", "#8a5ab0", "#b0562a", "#e0a070")))
    for name, arm in data["arms"].items():
        frames = [row["frames"] for row in arm["rows"]]
        style = {"color": colors[name], "label": name, "linestyle": "--" if "history" in name else "-"}
        left.plot(frames, [row["peak_mib"] for row in arm["rows"]], marker="o" if "call" in name else "", **style)
        if "answers" in arm:
            right.plot(frames, [1000 * row["seconds_per_frame"] for row in arm["rows"]], **style)
    left.set_ylabel("peak memory, MiB")
    right.set_ylabel("ms per frame")
    shown = [arm["rows"] for name, arm in data["arms"].items() if "answers" in arm and "most" not in ARMS[name]]
    right.set_ylim(
        0, 1100 * max(row["seconds_per_frame"] for rows in shown for row in rows)
    )  # all tokens leave it at once
    left.set_ylim(bottom=0)
    for ax in (left, right):
        ax.set_xlabel("frames seen")
    left.legend(fontsize=8, frameon=False)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3600)
    parser.add_argument("--only", nargs="+", choices=ARMS, default=[], help="measure these anew")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="write the page from the data that is there")
    given = parser.parse_args()
    if given.arm:
        torch.set_num_threads(1)
        arm = ARMS[given.arm]
        print(json.dumps((in_one_call if "call" in arm else streamed)(arm, given.frames)))
    elif given.page:
        data = json.loads(DATA.read_text())
        picture(data)
        PAGE.write_text(page(data))
    else:
        write_json(DATA, measured(given.frames, given.only))


if __name__ == "__main__":
    main()
