"""Write docs/tower_measured.md and its picture from results/tower.json and results/before_the_tower.json.

python benchmarks/tower_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE, PICTURE = HERE.parent / "docs/tower_measured.md", HERE.parent / "docs/images/tower_measured.png"
OPENING = """# Before and inside the vision tower, measured

Written by `python benchmarks/tower_page.py`; what the stage is, in [Before the vision tower](tower.md).

![Speed of the tower; what a trained tower makes of a part of a photograph](images/tower_measured.png)

## Seconds of the tower

A tower of Qwen2.5-VL with random weights: {depth} blocks and heads of 80 as published, {width} channels (1,280 in the real one),
windows and full blocks as published. A unit is 2 x 2 patches, one visual token; the picture is a screenshot drawn by program.
Speed-up is unreduced time over reduced time of the tower, arms taking turns, the median of {rounds} rounds (lowest to highest);
the choice of units and the merging are part of it. *Ideal* is what the tower's FLOPs promise. *Own* is the method's own work as
a share of the unreduced tower. What has few FLOPs (norms, rotary tables, windows put in order) gets shorter, too, so a speed-up
may exceed its ideal. {cpu}, {threads} threads, torch {torch}, transformers {transformers}, float32
([data](../benchmarks/results/tower.json)).
"""
PAGES = """## What enters

Share of the units of a picture that PixelPrune lets enter, by what is drawn (`benchmarks/pages.py`). Every row that enters the
first block is bit for bit one of the whole picture's: {differ} of all rows differ. A photograph with the noise of a sensor has no
two equal units: there a budget (`keep=`) drops what is foretold best.
"""
TRAINED = """## What a trained tower makes of it

DINOv2-small on four photographs of 518 x 518 pixels. Cosine is between the features of the reduced tower and of the whole one:
of [CLS] (lowest of the four) and of the patches that are left. `FLOPs` is of the blocks. At equal patches merging keeps far more
than leaving out, and costs more: it begins with all patches, and leaves some only from block to block.
([data](../benchmarks/results/before_the_tower.json))
"""


def table(head: list[str], rows: Iterator[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"


def page(speed: dict[str, Any], entered: dict[str, Any]) -> str:
    seconds = (
        [
            f"{row['units']:,}",
            f"`{row['method']}`",
            f"{row['left']:,}",
            f"{row['speedup']['median']:.2f}x ({row['speedup']['low']:.2f} to {row['speedup']['high']:.2f})",
            f"{row['flops_ideal']:.2f}x",
            f"{row['of_ideal']:.2f}",
            f"{row['own_share']:.2%}",
        ]
        for row in speed["rows"]
    )
    kinds = list(dict.fromkeys(row["page"] for row in entered["pages"]))
    sizes = sorted({(row["units"], row["threshold"]) for row in entered["pages"]})
    kept = {(row["units"], row["threshold"], row["page"]): row["kept"] for row in entered["pages"]}
    shares = ([f"{units:,}", f"{tau:g}", *(f"{kept[units, tau, kind]:.0%}" for kind in kinds)] for units, tau in sizes)
    features = (
        [
            f"`{row['arm']}`",
            f"{row['keep']:.0%}",
            f"{row['cls']:.4f} ({row['cls_lowest']:.4f})",
            f"{row['kept_patches']:.4f}",
            f"{row['flops']:.0%}",
        ]
        for row in entered["dinov2_small"]
    )
    parts = [
        OPENING.format(**speed, **{name: speed["environment"][name] for name in ("cpu", "torch", "transformers")}),
        table(["units", "method", "left", "speed-up", "ideal", "of ideal", "own"], seconds),
        PAGES.format(differ=sum(row["rows_that_differ"] for row in entered["pages"])),
        table(["units", "`threshold`", *kinds], shares),
        TRAINED,
        table(["method", "patches", "cosine of [CLS]", "of patches", "FLOPs"], features),
    ]
    return "\n".join(parts)


def picture(speed: dict[str, Any], entered: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(3, 2))
    sizes = sorted({row["units"] for row in speed["rows"]})
    names = list(dict.fromkeys(row["method"] for row in speed["rows"]))
    for i, (units, color) in enumerate(zip(sizes, ("#8fb8de", "#2a6fb0"))):
        own = [row for row in speed["rows"] if row["units"] == units]
        at = [y + 0.38 * i for y in range(len(names))]
        left.barh(at, [row["speedup"]["median"] for row in own], 0.36, color=color, label=f"{units:,} units")
        left.plot([row["flops_ideal"] for row in own], at, "k|", markersize=13, label="FLOPs" if i == 0 else None)
    left.set_yticks([y + 0.19 for y in range(len(names))], names, fontsize=9)
    left.invert_yaxis()
    left.axvline(1, color="grey", linewidth=0.8)
    left.set_xlabel("speed-up of the tower")
    left.legend(fontsize=8, frameon=False)
    for arm in dict.fromkeys(row["arm"] for row in entered["dinov2_small"]):
        own = [row for row in entered["dinov2_small"] if row["arm"] == arm]
        for name, style, what in (("cls", "o-", "[CLS]"), ("kept_patches", "s--", "patches")):
            color = "#b0562a" if arm == "tome" else "#2a6fb0"
            right.plot([r["flops"] for r in own], [r[name] for r in own], style, color=color, label=f"{arm}: {what}")
    right.set_xlabel("share of the blocks' FLOPs")
    right.set_ylabel("cosine to the whole tower's")
    right.legend(fontsize=8, frameon=False)
    figure.savefig(PICTURE, dpi=110)


def measured() -> list[dict[str, Any]]:
    """What ``tower.py`` and ``before_the_tower.py`` wrote."""
    return [json.loads((HERE / f"results/{name}.json").read_text()) for name in ("tower", "before_the_tower")]


def main() -> None:
    speed, entered = measured()
    PAGE.write_text(page(speed, entered))
    picture(speed, entered)


if __name__ == "__main__":
    main()
