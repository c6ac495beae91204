"""Every method at every budget that `tokenreduce tune` may try, on the demo model: the truth that its search is held against.

python benchmarks/ladder.py OUT    (runs or resumes a sweep in OUT, writes benchmarks/results/ladder.csv)
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from tokenreduce.eval.report import rows
from tokenreduce.eval.sweep import Store
from tokenreduce.eval.tune.search import LADDER

RESULTS = Path(__file__).parent / "results/ladder.csv"
TASK, LIMIT = "tr_demo_crowd", 60
COLUMNS = ("method", "keep", "questions", "relative", "relative_low", "relative_high", "flops_share", "token_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    flags = ("--model", "demo", "--task", TASK, "--limit", str(LIMIT), "--keep", ",".join(map(str, LADDER)))
    subprocess.run([sys.executable, "-m", "tokenreduce.cli", "sweep", *flags, "--out", str(out)], check=True)
    found = [row for row in rows(Store(out).everything()) if row.method != "unreduced"]
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, name) for name in COLUMNS] for row in found)


if __name__ == "__main__":
    main()
