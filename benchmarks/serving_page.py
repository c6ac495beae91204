"""Table and plot of docs/serving.md, from what ``serving.py`` measured: ``python benchmarks/serving_page.py``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
DATA, PAGE = HERE / "results/serving.json", HERE.parent / "docs/serving.md"
PICTURE = HERE.parent / "docs/images/serving.png"
BEGIN, END = "<!-- from benchmarks/results/serving.json -->", "<!-- end -->"
ALT = "Time to the first token, and requests a second, by users at once, unreduced and at three budgets"
COLORS = ("#555555", "#8fb8de", "#2a6fb0", "#b0562a")  # the budgets, from the whole picture down


def measured() -> dict[str, Any]:
    return json.loads(DATA.read_text())


def values(data: dict[str, Any], users: int, keep: float, name: str) -> list[float]:
    """Of each repetition."""
    return [row[name] for row in data["rows"] if (row["users"], row["keep"]) == (users, keep)]


def both(data: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Users at once, ascending, and budgets, descending."""
    rows = data["rows"]
    return sorted({row["users"] for row in rows}), sorted({row["keep"] for row in rows}, reverse=True)


def table(data: dict[str, Any]) -> str:
    """The plot, and the rows as a table, the median of the repetitions in each."""
    lines = [
        "| users at once | kept | tokens of a prompt | requests/s | tokens/s | first token, p50 | p99 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    names = "prompt_tokens", "requests_per_second", "tokens_per_second", "first_p50_ms", "first_p99_ms"
    every, budgets = both(data)
    for users in every:
        for keep in budgets:
            prompt, requests, tokens, p50, p99 = (median(values(data, users, keep, name)) for name in names)
            lines.append(
                f"| {users} | {keep:.0%} | {prompt:.0f} | {requests:.1f} | {tokens:.0f} | {p50:.0f} ms | {p99:.0f} ms |"
            )
    about = (
        f"Medians of {data['repeat']} runs of {data['requests']} requests, {data['tokens']} tokens an answer; {data['model']}, "
        f"{data['method']}, {data['device']}; {data['versions']}. Bars in the plot reach from the lowest run to the highest. "
        f"{data['note']}"
    )
    return "\n".join([BEGIN, "", f"![{ALT}](images/{PICTURE.name})", "", *lines, "", about, "", END])


def page(text: str, data: dict[str, Any]) -> str:
    """The page with the table of ``data``."""
    return text[: text.index(BEGIN)] + table(data) + text[text.index(END) + len(END) :]


def picture(data: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    every, budgets = both(data)
    panels = ("first_p50_ms", "milliseconds to the first token, p50"), ("requests_per_second", "requests a second")
    for axis, (name, label) in zip(axes, panels):
        for i, (keep, color) in enumerate(zip(budgets, COLORS)):
            runs = [values(data, users, keep, name) for users in every]
            mid = [median(own) for own in runs]
            spread = [[m - min(own) for m, own in zip(mid, runs)], [max(own) - m for m, own in zip(mid, runs)]]
            at = [users * 1.06 ** (i - 1.5) for users in every]  # beside each other, so that bars are told apart
            axis.errorbar(
                at,
                mid,
                spread,
                fmt="o-",
                color=color,
                markersize=4,
                capsize=2,
                linewidth=1.2,
                label="unreduced" if keep == 1 else f"{keep:.0%} kept",
            )
        axis.set_xscale("log")
        axis.set_xticks(every, map(str, every))
        axis.set_xlabel("users at once")
        axis.set_ylabel(label)
        if name == "first_p50_ms":
            axis.set_yscale("log")
            ticks = [30, 100, 300, 1000]
            axis.set_yticks(ticks, map(str, ticks))
        else:
            axis.set_ylim(bottom=0)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    data = measured()
    PAGE.write_text(page(PAGE.read_text(), data))
    picture(data)


if __name__ == "__main__":
    main()
