"""Curves and heat maps of a sweep, with plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from ..recipe import UNREDUCED
from .columns import difference, percent, score
from .rows import Row

AXES = {
    "token_share": "visual tokens, share (mean of layers)",
    "decoder_flops_share": "decoder prefill FLOPs, share",
    "ttft_share": "time to first token, share",
}
FRONT = "rgb(255, 224, 160)"
#: one hue by lightness, light to dark: read in grey and by colour-blind eyes
SCALE = "Blues"
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "cross",
    "x",
    "pentagon",
    "hexagon",
    "star-triangle-down",
    "hourglass",
)


def looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Colour, symbol and dash of each method, the same in every figure; black and grey for the baselines."""
    methods = [m for m in dict.fromkeys(row.method for row in rows) if m not in (UNREDUCED, "random")]
    found = {UNREDUCED: {"color": "#444", "symbol": "star", "dash": "solid"}}
    found["random"] = {"color": "#777", "symbol": "x-thin-open", "dash": "dash"}
    for i, method in enumerate(methods):
        color = qualitative.Dark24[i % len(qualitative.Dark24)]
        found[method] = {"color": color, "symbol": SYMBOLS[i % len(SYMBOLS)], "dash": "solid"}
    return found


def curves(rows: Sequence[Row], style: dict[str, dict[str, Any]]) -> go.Figure:
    """Score of one model and task over tokens, FLOPs and latency; a pale line joins what nothing beats in both."""
    figure = make_subplots(1, len(AXES), shared_yaxes=True, horizontal_spacing=0.03)
    for column, (axis, title) in enumerate(AXES.items(), start=1):
        points = [row for row in rows if row.score is not None and getattr(row, axis) is not None]
        front = pareto(
            [(getattr(row, axis), row.score or 0.0) for row in points], points[0].higher_is_better if points else True
        )
        line, dots = {"color": FRONT, "width": 9}, {"color": FRONT, "size": 18}
        about = {"legendgroup": "front", "showlegend": column == 1, "hoverinfo": "skip", "line": line, "marker": dots}
        figure.add_scatter(
            x=[p[0] for p in front], y=[p[1] for p in front], name="not beaten", row=1, col=column, **about
        )
        for method in dict.fromkeys(row.method for row in points):
            own = sorted((row for row in points if row.method == method), key=lambda r: r.equivalent_tokens or 0.0)
            figure.add_trace(_curve(own, axis, style[method], column == 1), row=1, col=column)
        figure.update_xaxes(title=title, rangemode="tozero", tickformat=".0%", row=1, col=column)
    title = f"{rows[0].metric or 'score'}{'' if rows[0].higher_is_better else ' (lower is better)'}"
    figure.update_yaxes(title=title, row=1, col=1)
    if rows[0].share:
        figure.update_yaxes(tickformat=".0%")
    figure.update_layout(
        template="plotly_white",
        height=480,
        margin={"t": 50, "b": 110, "l": 60, "r": 10},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "groupclick": "togglegroup"},
        hoverlabel={"align": "left"},
        updatemenus=[_intervals()],
    )
    return figure


def _curve(own: Sequence[Row], axis: str, style: dict[str, Any], legend: bool) -> go.Scatter:
    scores = [row.score or 0.0 for row in own]
    above = [(row.score_high if row.score_high is not None else s) - s for row, s in zip(own, scores)]
    below = [s - (row.score_low if row.score_low is not None else s) for row, s in zip(own, scores)]
    method = own[0].method
    return go.Scatter(
        x=[getattr(row, axis) for row in own],
        y=scores,
        name=method,
        legendgroup=method,
        showlegend=legend,
        mode="markers" if len(own) == 1 else "lines+markers",
        line={"color": style["color"], "dash": style["dash"], "width": 1.5},
        marker={
            "symbol": style["symbol"],
            "color": style["color"],
            "size": 14 if method == UNREDUCED else 8,
            "line": {"width": 1.5},
        },
        error_y={"type": "data", "array": above, "arrayminus": below, "visible": False, "thickness": 1, "width": 3},
        text=[_hover(row) for row in own],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(row: Row) -> str:
    lines = [
        f"<b>{row.method}</b> keep={row.keep}",
        f"{row.metric}: {score(row)}",
        f"of unreduced: {percent(row.relative, row.relative_low, row.relative_high)}",
    ]
    if row.vs_random is not None:
        gain = difference(row, row.vs_random, row.vs_random_low, row.vs_random_high)
        lines.append(f"gain over {row.control}: {gain}")
    if row.tokens_kept is not None:
        lines.append(
            f"tokens: {row.tokens_kept:.0f} kept, {row.equivalent_tokens:.0f} mean of layers, {row.tokens_in:.0f} in"
        )
    if row.decoder_gflops is not None and row.ttft_ms is not None:
        lines.append(
            f"decoder prefill {row.decoder_gflops:.3g} GFLOPs, first token {row.ttft_ms:.1f} ms, method {row.method_ms:.1f} ms"
        )
    return "<br>".join(lines)


def _intervals() -> dict[str, Any]:
    buttons = [
        {"label": f"intervals {word}", "method": "restyle", "args": [{"error_y.visible": shown}]}
        for word, shown in (("off", False), ("on", True))
    ]
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "x": 0,
        "y": 1.14,
        "xanchor": "left",
        "yanchor": "top",
    }


def pareto(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[tuple[float, float]]:
    """Those (cost, score) that no other point beats in one without losing in the other, cheapest first."""
    sign = 1 if higher_is_better else -1
    found: list[tuple[float, float]] = []
    for cost, made in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not found or sign * made > sign * found[-1][1]:
            found.append((cost, made))
    return found


def heat_map(rows: Sequence[Row]) -> go.Figure:
    """Score relative to the unreduced model: a line per method, a column per task and budget."""
    shown = [row for row in rows if row.method != UNREDUCED and row.relative is not None]
    methods = list(dict.fromkeys(row.method for row in shown))
    order = {row.keep: -(row.token_share or 0) for row in reversed(shown) if row.method == "random"}
    columns = sorted({(_named(row), row.keep) for row in shown}, key=lambda c: (c[0], order.get(c[1], 0), c[1]))
    by_place = {(row.method, _named(row), row.keep): row for row in shown}
    values = [[_relative(by_place.get((method, *column))) for column in columns] for method in methods]
    texts = [[_scored(by_place.get((method, *column))) for column in columns] for method in methods]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[[task for task, _ in columns], [f"keep {keep}" for _, keep in columns]],
            y=methods,
            text=texts,
            texttemplate="%{text}",
            hovertemplate="%{y}, %{x}: %{z:.1%} of unreduced<extra></extra>",
            colorscale=SCALE,
            zmin=0,
            zmax=1,
            colorbar={"title": "of unreduced", "tickformat": ".0%"},
        )
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template="plotly_white", height=140 + 34 * len(methods), margin={"t": 20, "b": 90, "l": 10, "r": 10}
    )
    return figure


def _relative(row: Row | None) -> float | None:
    return None if row is None else row.relative


def _named(row: Row) -> str:
    group = "" if row.group is None else f"{row.group} / "
    return f"{group}{row.task}, {row.metric}"


def _scored(row: Row | None) -> str:
    if row is None or row.score is None:
        return ""
    return f"{100 * row.score:.0f}" if row.share else score(row)
