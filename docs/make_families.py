"""Run every method on every family and make docs/families.md of what happened, which docs/families.json keeps.

python docs/make_families.py                     every family, two at a time
python docs/make_families.py --only llava gemma4 these anew, the others as they ran last
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, RAN = ROOT / "docs" / "families.md", ROOT / "docs" / "families.json"

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the pairs are run by what tests them


def run(key: str) -> dict[str, Any]:
    import pairs
    import torch

    torch.set_num_threads(1)
    return pairs.record(key)


def main() -> None:
    import pairs
    import reduced
    from rich.progress import track

    import tokenreduce as tr

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=reduced.EVERY, metavar="FAMILY", help="run these anew")
    parser.add_argument("--workers", type=int, default=2, help="families at a time (default: 2)")
    chosen = parser.parse_args()
    before = json.loads(RAN.read_text())["families"] if RAN.exists() else {}
    todo = chosen.only or reduced.EVERY
    found, failed = {}, []
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run, key): key for key in todo}
        for one in track(as_completed(running), "families", total=len(todo)):
            if error := one.exception():
                failed.append(f"{running[one]}: {type(error).__name__}: {error}")
            else:
                found[running[one]] = one.result()
    missing = [key for key in reduced.EVERY if key not in found and key not in before]
    if missing:
        sys.exit(f"never ran: {', '.join(missing)}; add them to --only, or leave it out")
    kept = {key: found.get(key) or before[key] for key in reduced.EVERY}
    versions = {row["library"]: row["installed"] for row in tr.versions()}
    RAN.write_text(json.dumps({"versions": versions, "families": kept}, indent=1) + "\n")
    PAGE.write_text(pairs.page(kept))
    if failed:
        sys.exit("what ran is written, but these did not, and are as they were:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
