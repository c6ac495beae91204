"""``tokenreduce bench models --plot``: milliseconds of each stage by method, beside the model unreduced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenreduce.draw import ROLE_COLORS
from tokenreduce.files import replacing

from .models import stage_times, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"tower": "tower", "prefill": "prefill", "decode": "decoding, per token"}
PALETTE = [tuple(part / 255 for part in color) for color in ROLE_COLORS if min(color) < 255]  # no white
UNREDUCED = "0.35"


def plot(content: dict[str, Any], path: Path) -> None:
    """Draw ``content``, what ``tokenreduce bench models`` found, to ``path``: a bar per method, a dashed line unreduced."""
    from matplotlib.figure import Figure

    rows = content["rows"]
    several = len({row["batch"] for row in rows}) > 1
    labels = [row["method"] + (f", batch {row['batch']}" if several else "") for row in rows]
    names = list(dict.fromkeys(row["method"] for row in rows))
    colors = [PALETTE[names.index(row["method"]) % len(PALETTE)] for row in rows]
    figure = Figure(figsize=(10, 1.6 + 0.4 * len(rows)), dpi=120, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    for axes, (stage, title) in zip(panels, PANELS.items()):
        _panel(axes, [stage_times(row, stage) for row in rows], colors)
        axes.set_xlabel(f"{title}, ms")
    panels[0].set_yticks(range(len(rows)), labels)
    panels[0].invert_yaxis()
    figure.suptitle(f"{content['title']}\nkeep={content['keep']}; {where(content)}; dashed: unreduced", fontsize=9)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())


def _panel(axes: Axes, times: list[tuple[float, float]], colors: list[Any]) -> None:
    """``times``: milliseconds unreduced and reduced."""
    longest = max(max(pair) for pair in times)
    axes.barh(range(len(times)), [after for _, after in times], height=0.62, color=colors)
    for i, (before, after) in enumerate(times):
        axes.plot([before, before], [i - 0.42, i + 0.42], color=UNREDUCED, linestyle="--", linewidth=1.5)
        axes.text(max(before, after) + 0.03 * longest, i, f"{before / after:.2f}x", va="center", fontsize=9)
    axes.set_xlim(0, 1.28 * longest)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
