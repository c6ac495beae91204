"""Write docs/performance.md from the committed measurements of ``tokenreduce bench``.

python benchmarks/performance.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs/performance.md", ROOT / "benchmarks/results/bench"

OPENING = """# Performance

Written by `python benchmarks/performance.py` from `benchmarks/results/bench/`; every table names its command, device and
versions. Ratios compare arms that took turns in one run: the median, with the lowest and highest in brackets. On one thread
the clock is the CPU time of the process, so that other load on the machine does not count.

## What runs

Every operation in `kernels/` has a reference, which is also the CPU path, and a Triton kernel under `kernels/triton/`.
`tokenreduce.kernels.dispatch` picks by device, dtype and shape:

```python
from tokenreduce.kernels import dispatch

with dispatch.explained() as choices:  # what ran, and why
    model.generate(**inputs)
with dispatch.backend("reference"):  # or "triton"; TOKENREDUCE_KERNELS=reference does the same from outside
    model.generate(**inputs)
```

**The compiled kernels have not run on a GPU.** They are tested in Triton's interpreter against the references, and compiled
to machine code for compute capability 8.0 and 9.0 without being launched (`tests/kernels/test_compile.py`); the same tests
run compiled where a GPU is found. There are no GPU timings on this page, and block sizes have not been tuned on one.
"""

NOTES = {
    "ops": """Speed-up is against the plain form; the share of the roofline is the least time for the FLOPs and bytes of the
mathematics, by the copy and the matrix product measured in the same run, over the time taken. Memory is the largest single
tensor, in MiB. The plain forms write whole tables, as the formulas of the papers stand.""",
    "models": """The decoder has fewer layers than published where memory asks for it. `at full depth` scales the time of the
layers, but not the method's own cost, to the published depth; `own cost` is put against the prefill time saved, scaled in
the same way. Weights are random: these numbers say nothing about answers.""",
    "towers": """The FLOPs ratio counts attention and MLP of every block, without patch embedding and head, at the r of the
ToMe paper.""",
}
HEADINGS = {"ops": "Operations", "models": "Models", "towers": "Vision towers of timm"}


def commands() -> dict[str, str]:
    """File name to the command that wrote it."""
    return json.loads((RESULTS / "commands.json").read_text())


def page() -> str:
    parts = [OPENING]
    found = {name: json.loads((RESULTS / name).read_text()) for name in commands()}
    for what, heading in HEADINGS.items():
        parts.append(f"## {heading}\n\n{NOTES[what]}\n")
        for name, content in found.items():
            if content["what"] == what:
                parts += [caption(name, content), TABLES[what](content["rows"]), ""]
    parts.append((RESULTS / "reached.md").read_text().rstrip())
    return "\n".join(parts) + "\n"


def caption(name: str, content: dict[str, Any]) -> str:
    at = content["environment"]
    where = f"{at['cpu']}, {at['threads']} thread(s)" if at["device"] == "cpu" else at["device"]
    return (
        f"**{content['title']}**: `{commands()[name]}`, {content['rounds']} rounds, {content['dtype']}, {where}, "
        f"{content['clock']}, torch {at['torch']}, transformers {at['transformers']} "
        f"([data](../benchmarks/results/bench/{name})).\n"
    )


def spread(ratio: dict[str, float]) -> str:
    digits = 0 if ratio["median"] >= 100 else 2
    return f"{ratio['median']:.{digits}f}x [{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def operations(rows: list[dict[str, Any]]) -> str:
    return markdown(
        [
            {
                "operation": f"`{row['operation']}`",
                "size": " ".join(f"{name}={value}" for name, value in row["size"].items()),
                "ms": f"{row['ours_ms']['median']:.3g}",
                "plain ms": f"{row['plain_ms']['median']:.3g}",
                "speed-up": spread(row["speedup"]),
                "of roofline": f"{row['roofline_share']:.0%}",
                "memory": f"{row['peak_mib']:.3g}",
                "plain": f"{row['plain_peak_mib']:.3g}",
            }
            for row in rows
        ]
    )


def models(rows: list[dict[str, Any]]) -> str:
    return markdown(
        [
            {
                "method": f"`{row['method']}`",
                "visual tokens": f"{row['tokens_in']} to {row['tokens']}",
                "prefill": spread(row["prefill_speedup"]),
                "FLOPs": f"{row['flops_ideal']:.2f}x",
                "of ideal": f"{row['of_ideal']:.2f}",
                "at full depth": f"{row['of_ideal_at_full_depth']:.2f}",
                "own cost, ms": f"{row['own_ms']['median']:.1f}",
                "own cost of what is saved": f"{row['own_share_of_saved']:.1%}",
                "decode ms per token": " / ".join(f"{a['median']:.3g}" for a in row["decode_ms_per_token"].values()),
                "KV MiB": f"{row['unreduced_kv_mib']:.1f} / {row['kv_mib']:.1f}",
            }
            for row in rows
        ]
    )


def towers(rows: list[dict[str, Any]]) -> str:
    return markdown(
        [
            {
                "tower": f"{row['tower']}, {row['blocks']} blocks",
                "arm": f"{row['arm']}, r={row['r']}",
                "batch": str(row["batch"]),
                "images/s": f"{row['images_per_s']['median']:.3g}",
                "unreduced": f"{row['unreduced_images_per_s']['median']:.3g}",
                "speed-up": spread(row["speedup"]),
                "FLOPs": f"{row['flops_ideal']:.2f}x",
                "of ideal": f"{row['of_ideal']:.2f}",
            }
            for row in rows
        ]
    )


TABLES = {"ops": operations, "models": models, "towers": towers}


def main() -> int:
    new = page()
    if "--check" in sys.argv:
        return 0 if PAGE.exists() and PAGE.read_text() == new else 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
