"""Write docs/performance.md from the committed measurements of ``tokenreduce bench``.

python benchmarks/performance.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cost_curves
import long_videos

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs/performance.md", ROOT / "benchmarks/results/bench"
SECTIONS = (ROOT / "benchmarks/performance_notes.md").read_text().split("## ")[1:]
NOTES = {name: text.strip() for name, _, text in (section.partition("\n") for section in SECTIONS)}
HEADINGS = {"ops": "Operations", "models": "Models", "towers": "Vision towers of timm"}


def commands() -> dict[str, str]:
    """File name to the command that wrote it."""
    return json.loads((RESULTS / "commands.json").read_text())


def page() -> str:
    parts = [(ROOT / "benchmarks/performance_opening.md").read_text()]
    found = current({name: json.loads((RESULTS / name).read_text()) for name in commands()})
    for what, heading in HEADINGS.items():
        parts.append(f"## {heading}\n\n{NOTES[what]}\n")
        for name, content in found.items():
            if content["what"] == what:
                parts += [caption(name, content), TABLES[what](content["rows"]), ""]
    parts += [long_videos.section(), cost_curves.section(), "## What was aimed at", "", reached(list(found.values()))]
    return "\n".join(parts) + "\n"


def current(found: dict[str, Any]) -> dict[str, Any]:
    """``found``, less what a later file measured again: operations are rewritten one at a time."""
    names = list(found)
    for i, name in enumerate(names):
        again = {row["operation"] for later in names[i + 1 :] for row in found[later]["rows"] if "operation" in row}
        rows = [row for row in found[name]["rows"] if row.get("operation") not in again]
        found[name] = found[name] | {"rows": rows}
    return found


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
                "batch": str(row["batch"]),
                "visual tokens": f"{row['tokens_in']} to {row['tokens']}",
                "prefill": spread(row["prefill_speedup"]),
                "FLOPs": f"{row['flops_ideal']:.2f}x",
                "of ideal": f"{row['of_ideal']:.2f}",
                "products": f"{row['products_speedup']['median']:.2f}x",
                "first token": spread(row["first_token_speedup"]),
                "own cost, ms": f"{row['own_ms']['median']:.1f}",
                "own cost of what is saved": f"{row['own_share_of_saved']:.2%}",
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


def rows_of(found: list[dict[str, Any]], what: str, **wanted: Any) -> list[dict[str, Any]]:
    rows = [row for content in found if content["what"] == what for row in content["rows"]]
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def between(values: list[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}" if len(values) > 1 else f"{values[0]:{form}}"


def reached(found: list[dict[str, Any]]) -> str:
    """Aims beside what was measured, and where they were missed why."""
    operations = rows_of(found, "ops")
    slower = {row["operation"] for row in operations if row["speedup"]["median"] < 1}
    matching = [row for row in rows_of(found, "ops", operation="bipartite_matching") if row["size"]["N"] <= 4096]
    greedy = {note: rows_of(found, "ops", note=note) for note in ("max-min", "DPP")}
    foreseen = [row["speedup"]["median"] / row["roofline_share"] for row in greedy["max-min"] + greedy["DPP"]]
    greedy["suppression"] = rows_of(found, "ops", operation="suppressed_selection")
    video = {"T": 1024, "N": 196}
    cuts, whole = (
        rows_of(found, "ops", operation=name, size=video)[0] for name in ("temporal_segmentation", "holitom")
    )
    rows = rows_of(found, "models")
    llava = [c for c in found if c.get("shape") == "llava-1.5-7b"]
    entry = [row for row in rows_of(llava, "models") if row["method"] in ENTRY]
    one, several = ([row for row in entry if (row["batch"] == 1) is alone] for alone in (True, False))
    scored = [row for row in rows if row["method"] in ENTRY]
    others = [row for row in rows if row["method"] not in (*ENTRY, "random")]
    towers = rows_of(found, "towers", arm="tome")
    return markdown(
        [
            aim(
                "every operation faster than its plain form on a CPU",
                f"{sum(row['speedup']['median'] >= 1 for row in operations)} of {len(operations)} sizes",
                not slower,
                "missed at some sizes of " + ", ".join(f"`{name}`" for name in sorted(slower)),
            ),
            aim(
                "ToMe's step at N = 577 to 4096, B = 1 to 16: 1.5x the plain form",
                between([row["speedup"]["median"] for row in matching], ".2f") + "x",
                min(row["speedup"]["median"] for row in matching) >= 1.5,
                "missed at "
                + ", ".join(f"B={r['size']['B']} N={r['size']['N']}" for r in matching if r["speedup"]["median"] < 1.5),
            ),
            aim(
                "greedy selections, 576 to 64 and 2,880 to 320: 10x a loop with a table",
                ", ".join(
                    f"{note} {between([row['speedup']['median'] for row in own], '.2f')}x"
                    for note, own in greedy.items()
                ),
                min(row["speedup"]["median"] for own in greedy.values() for row in own) >= 10,
                NOTES["selections"].replace("\n", " ").format(between(foreseen, ".0f")),
            ),
            aim(
                "HoliTom's cuts at 1,024 frames: 10x a loop over pairs of frames, memory linear",
                spread(cuts["speedup"]),
                cuts["speedup"]["median"] >= 10,
                "missed",
            ),
            aim(
                "HoliTom's cuts and merging at 1,024 frames: 10x loops over frames and clusters, memory linear",
                spread(whole["speedup"]),
                whole["speedup"]["median"] >= 10,
                "missed: both forms compare all adjacent frames at the speed of memory and make all distances within the frames "
                "that cluster, by the profiler most of our time; loops that go place by place are slower, see long videos",
            ),
            aim(
                "LLaVA-7B wide, 576 to 64: prefill 0.9 of the FLOPs ratio",
                ", ".join(
                    [f"one prompt {between([row['of_ideal'] for row in one], '.2f')}"]
                    + [f"{row['batch']} prompts {row['of_ideal']:.2f}" for row in several]
                ),
                min(row["of_ideal"] for row in one) >= 0.9,
                "missed: products of 137 rows reach less of the processor's speed than those of 649. Alone they gain "
                f"{between([row['products_speedup']['median'] for row in one], '.2f')}x, the prefill "
                f"{between([row['prefill_speedup']['median'] for row in one], '.2f')}x, and what method and hooks cost is "
                f"at most {max(row['own_ms']['median'] / row['prefill_ms']['median'] for row in one):.1%} of the reduced one",
            ),
            aim(
                "own cost of FasterVLM and HiPrune: 2 % of the prefill saved",
                between([100 * row["own_share_of_saved"] for row in scored], ".2f") + " %",
                max(row["own_share_of_saved"] for row in scored) <= 0.02,
                "missed",
            ),
            aim(
                "own cost of the others: 5 % of the prefill saved",
                between([100 * row["own_share_of_saved"] for row in others], ".2f") + " %",
                max(row["own_share_of_saved"] for row in others) <= 0.05,
                "missed",
            ),
            aim(
                "ToMe in timm: within 10 % of the FLOPs ratio",
                ", ".join(
                    f"{row['tower']} batch {row['batch']}: {row['of_ideal']:.2f} ({c['environment']['cpu']})"
                    for c in found
                    for row in rows_of([c], "towers", arm="tome")
                ),
                min(row["of_ideal"] for row in towers) >= 0.9,
                "missed with one picture: products of few rows run slower, and the fixed cost of many small operations weighs "
                "more",
            ),
            aim("everything on a GPU", "not measured", False, "no GPU was at hand"),
        ]
    )


def aim(text: str, measured: str, met: bool, otherwise: str) -> dict[str, str]:
    return {"aim": text, "measured": measured, "remark": "reached" if met else otherwise}


ENTRY = ("fastervlm", "hiprune")
TABLES = {"ops": operations, "models": models, "towers": towers}


def main() -> int:
    new = page()
    if "--check" in sys.argv:
        return 0 if PAGE.exists() and PAGE.read_text() == new else 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
