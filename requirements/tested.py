"""Write tokenreduce/tested.json, what `tokenreduce doctor` shows, from the solved versions: python requirements/tested.py"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARIES = ("torch", "triton", "transformers", "timm", "open-clip-torch", "lmms-eval")


def solved(name: str) -> dict[str, str]:
    lines = (HERE / name).read_text().splitlines()
    return dict(line.partition(";")[0].strip().split("==") for line in lines)


def made() -> str:
    oldest, newest = solved("floor.txt"), solved("lock.txt")
    versions = {library: {"oldest": oldest[library], "newest": newest[library]} for library in LIBRARIES}
    return json.dumps(versions, indent=2) + "\n"


if __name__ == "__main__":
    (HERE.parent / "tokenreduce/tested.json").write_text(made())
