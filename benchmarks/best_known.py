"""The table that ``tr.wrap(model, "auto")`` looks things up in, from committed data of this repository's sweeps.

python benchmarks/best_known.py

Photographs: results/ranking.json, the two sets of questions on pictures; random was drawn at counts of its own there, not at
the methods' budgets, and is left out. Videos: the task tr_demo_video of results/sweep_table.csv. Documents: nothing, since no
sweep asked questions about pages.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import tokenreduce as tr
from tokenreduce.files import replacing

HERE = Path(__file__).resolve().parent
TABLE = HERE.parent / "tokenreduce/best_known.csv"
PICTURES = {"test": "1 to 5 objects", "hard": "8 objects"}
COLUMNS = ("family", "kind", "model", "task", "method", "keep", "relative", "token_share", "questions")


def of_pictures() -> list[tuple[object, ...]]:
    data = json.loads((HERE / "results/ranking.json").read_text())
    methods = {row["name"] for row in tr.methods()} - {"random"}
    rows = []
    for split, task in PICTURES.items():
        cells = {key.partition("|")[2]: cell for key, cell in data["cells"].items() if key.startswith(f"{split}|")}
        whole = cells["unreduced"]
        for key, cell in cells.items():
            name, _, keep = key.partition("|")
            if name not in methods:
                continue
            relative = cell["right"].count("1") / whole["right"].count("1")
            share = cell["tokens"] / whole["tokens"]
            rows.append(
                ("llava", "photo", "demo", task, name, keep, f"{relative:.4f}", f"{share:.4f}", len(cell["right"]))
            )
    return rows


def of_videos() -> list[tuple[object, ...]]:
    with (HERE / "results/sweep_table.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["task"] == "tr_demo_video" and row["method"] != "unreduced"]
    return [
        ("llava", "video", row["model"], row["task"], row["method"], row["keep"], f"{float(row['relative']):.4f}",
         f"{float(row['token_share']):.4f}", row["questions"])
        for row in found
    ]  # fmt: skip


def main() -> None:
    lines = [",".join(map(str, row)) for row in (COLUMNS, *of_pictures(), *of_videos())]
    with replacing(TABLE) as file:
        file.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
