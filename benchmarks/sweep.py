"""A sweep on the demo model: undisturbed, killed and resumed, on Ray, and through lmms-eval's own command line.

python benchmarks/sweep.py OUT [--only plain,killed,ray,cli]    (writes benchmarks/results/sweep.json)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tokenreduce.eval.harness import TASKS
from tokenreduce.eval.results import write_json
from tokenreduce.eval.sweep import Grid, Store

RESULTS = Path(__file__).parent / "results/sweep.json"
GRID: dict[str, Any] = {
    "model": "demo",
    "tasks": ["tr_demo_images", "tr_demo_video"],
    "methods": ["fastervlm", "fastv", "hiprune", "mustdrop", "pitome", "tome", "pool", "uniform"],
    "keep": [0.5, 0.25, 0.11, 0.05],
    "limit": 30,
}
KILLS = 20
CLI_LIMIT = 6  # questions per task
TIMES = ("ttft_ms", "generate_ms", "method_ms")


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tokenreduce.cli", "sweep", str(out / "grid.yaml"), *more]


def answers(place: Path) -> dict[str, Any]:
    """By key: status, score and every question without its times."""
    found = {}
    for cell in Store(place).everything():
        result = cell.get("result", {})
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in result.get("questions", [])]
        found[cell["key"]] = (cell["status"], result.get("score"), rows)
    return found


def plain(out: Path) -> dict[str, Any]:
    start = time.time()
    subprocess.run(command(out, "--out", str(out / "plain")), check=True)
    return {"cells": len(answers(out / "plain")), "seconds": round(time.time() - start, 1)}


def killed(out: Path) -> dict[str, Any]:
    """Kills the sweep, or its worker, at random moments; then lets it finish."""
    chance, whom = random.Random(0), []
    while len(whom) < KILLS:
        process = subprocess.Popen(command(out, "--out", str(out / "killed")), stdout=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.5, 30))
            break  # everything is done: fewer kills than wanted
        except subprocess.TimeoutExpired:
            pass
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        if children and chance.random() < 0.3:
            os.kill(int(children[0]), signal.SIGKILL)
            whom.append("worker")
            time.sleep(chance.uniform(0, 3))
        process.kill()
        process.wait()
        whom.append("sweep")
    done_before = len(answers(out / "killed"))
    subprocess.run(command(out, "--out", str(out / "killed")), check=True, stdout=subprocess.DEVNULL)
    leftovers = [f.name for f in (out / "killed/cells").iterdir() if f.suffix != ".json" and f.name != ".lock"]
    return {"kills": len(whom), "of_the_worker": whom.count("worker"), "cells_done_when_killed_last": done_before,
            "leftover_files": leftovers, "equal": answers(out / "killed") == answers(out / "plain")}  # fmt: skip


def ray(out: Path) -> dict[str, Any]:
    start = time.time()
    subprocess.run(command(out, "--out", str(out / "ray"), "--ray", "local", "--workers", "2"), check=True)
    equal = answers(out / "ray") == answers(out / "plain")
    return {"workers": 2, "seconds": round(time.time() - start, 1), "equal": equal}


def cli(out: Path) -> dict[str, Any]:
    """The same cells through ``python -m lmms_eval --config``: a list of runs, each with all tasks, a few questions each."""
    cells, runs = Grid.of(GRID).cells, []
    places = {cell.key: out / "cli" / f"{cell.recipe.name}-{cell.recipe.keep}" for cell in cells}
    for place, recipe in {places[cell.key]: cell.recipe for cell in cells}.items():
        method = "".join(f",tr_method={m.name},tr_keep={m.keep}" for m in recipe.methods)
        run = {"model": "tokenreduce", "model_args": f"pretrained=demo{method}", "tasks": ",".join(GRID["tasks"])}
        run |= {"include_path": str(TASKS), "log_samples": True, "limit": CLI_LIMIT, "output_path": str(place)}
        runs.append(run)
    (out / "cli.yaml").write_text(json.dumps(runs))
    start = time.time()
    with (out / "cli.log").open("w") as log:
        lmms_eval = [sys.executable, "-m", "lmms_eval", "--config", str(out / "cli.yaml")]
        subprocess.run(lmms_eval, check=True, stdout=log, stderr=log)
    expected, different = answers(out / "plain"), []
    for cell in cells:
        (samples,) = places[cell.key].glob(f"**/*_samples_{cell.task}.jsonl")
        (measured,) = places[cell.key].glob("*_tokenreduce.json")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        kept = {(s["task"], s["doc_id"]): s["tokens_kept"] for s in json.loads(measured.read_text())["samples"]}
        found = {r["doc_id"]: (r["filtered_resps"], r["exact_match"], kept[cell.task, r["doc_id"]]) for r in rows}
        own = expected[cell.key][2][:CLI_LIMIT]
        if found != {row["doc_id"]: (row["reply"], row["score"], row["tokens_kept"]) for row in own}:
            different.append(str(cell))
    return {
        "cells": len(cells),
        "questions_each": CLI_LIMIT,
        "seconds": round(time.time() - start, 1),
        "different_cells": different,
    }


def main() -> None:
    steps = {"plain": plain, "killed": killed, "ray": ray, "cli": cli}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(steps))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "grid.yaml").write_text(json.dumps(GRID))  # JSON is YAML
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in given.only.split(","):
        found[name] = steps[name](given.out)
        cells = Store(given.out / "plain").everything()
        found |= {
            "grid": GRID,
            "versions": cells[0]["identity"]["versions"],
            "environment": cells[0]["result"]["environment"],
        }
        write_json(RESULTS, found)
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
