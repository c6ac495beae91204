"""What ``python benchmarks/video.py --long`` measured, as a section of docs/performance.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent / "results/long_videos.json"
NOTE = """A video of shots in which most places only shiver, {places} tokens of {channels} channels a frame, every method at its
defaults in front of the language model, beside loops that say the same frame by frame and, where places are compared, chosen or
joined one by one, place by place (`benchmarks/plain_video.py`); a test holds each method against its loop. *Kept otherwise* are
tokens that only one of the two keeps, near ties. Memory is the largest single tensor, beside the features that come in.

`OMP_NUM_THREADS=1 python benchmarks/video.py --long`, {rounds} rounds, {cpu}, {threads} thread, CPU time of the process, torch
{torch}; other programs ran beside it ([data](../benchmarks/results/long_videos.json)).
"""
WHY = """Not ten times at {frames:,} frames: {missed}. Their loops make whole tables, too, each number of which has to be made and
looked at in either form: {tables}.{products}"""
TABLES = {
    "holitom": "the distances in each segment and the nearest neighbours in them",
    "flashvid": "the distances within each frame, the cosines of neighbouring frames, and what is nearest in both",
    "fastvid": "the cosines of all centres with all tokens of their segment, and the nearest centre of each",
}
PRODUCTS = " Matrix products alone are, by the profiler, {shares} of our time."


def section() -> str:
    data = json.loads(DATA.read_text())
    longest = max(row["frames"] for row in data["rows"])
    slow = [row for row in data["rows"] if row["frames"] == longest and row["times"] < 10]
    missed = ", ".join(f"`{row['method']}` ({row['times']:.1f}x)" for row in slow)
    about = NOTE.format(**data, **{key: data["environment"][key] for key in ("cpu", "torch")})
    why = WHY.format(frames=longest, missed=missed, tables=tables(slow), products=products(slow)) if slow else ""
    return f"## Long videos\n\n{about}\n{table(data['rows'])}\n\n{why}\n"


def tables(slow: list[dict[str, Any]]) -> str:
    return "; ".join(f"for `{row['method']}` {TABLES[row['method']]}" for row in slow if row["method"] in TABLES)


def products(slow: list[dict[str, Any]]) -> str:
    """Nothing for data from before they were counted."""
    shares = [f"{row['products']:.0%} (`{row['method']}`)" for row in slow if "products" in row]
    return PRODUCTS.format(shares=", ".join(shares)) if shares else ""


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | frames | kept | ms | loops, ms | speed-up | memory, MiB | features, MiB | kept otherwise |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: (row["frames"], row["method"])):
        low, high = row["spread"]
        times = f"{row['times']:.1f}x [{low:.1f}, {high:.1f}]"
        sizes = f"{row['largest_tensor_mib']:.1f} | {row['input_mib']:.1f}"
        spent = f"{1000 * row['ours_s']:.3g} | {1000 * row['plain_s']:,.0f}"
        cells = f"`{row['method']}` | {row['frames']:,} | {row['kept']:,} | {spent} | {times} | {sizes}"
        lines.append(f"| {cells} | {row['others_kept']} |")
    return "\n".join(lines)
