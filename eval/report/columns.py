"""Rows of a report as text: which columns there are, what they mean, and how numbers are printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..statistics import COVERAGE, RESAMPLES
from .rows import Row


@dataclass(frozen=True)
class Column:
    """``head``: one line; ``legend``: what it says; ``text``: of a row."""

    head: str
    legend: str
    text: Callable[[Row], str]


def columns(rows: Sequence[Row], control: str = "tokens") -> list[Column]:
    """The columns that ``rows`` fill. ``control``: what random was made equal in."""
    axis = {"tokens": "tokens", "flops": "decoder FLOPs"}[control]
    found = [
        Column("method", "with what differs from its defaults", lambda r: r.method),
        Column("keep", "the budget asked for", lambda r: r.keep),
        Column("tokens", "visual tokens, mean of decoder layers, of those of the prompt", _tokens),
        Column(
            "decoder FLOPs",
            "prefill of the language model alone, share of unreduced",
            lambda r: percent(r.decoder_flops_share),
        ),
        Column(
            "prefill FLOPs",
            "vision tower, projector and prefill of the language model, of up to three prompts, share of unreduced",
            lambda r: percent(r.prefill_flops_share),
        ),
        Column("KV", "bytes of keys and values after the prompt, share of unreduced", lambda r: percent(r.kv_share)),
        Column("score", "the task's own ± its standard error [interval]", _score),
        Column("seeds", "number of seeds, and the standard deviation of their scores", _seeds),
        Column(
            "of unreduced",
            "score / unreduced score, where lower is better unreduced score / score [interval]",
            lambda r: percent(r.relative, r.relative_low, r.relative_high),
        ),
        Column(
            f"gain over random at equal {axis}",
            "how much better the score is than that of dropping at random, on a line between its two nearest budgets [interval]",
            lambda r: difference(r, r.vs_random, r.vs_random_low, r.vs_random_high),
        ),
        Column("gain over", "how much better the score is than that of the row named [interval]; p of no difference", _against),
        Column(
            "first token",
            "time to the first token, share of unreduced, both taking turns (lowest to highest round)",
            _first_token,
        ),
    ]  # fmt: skip
    always = {"method", "keep", "score"}
    return [c for c in found if c.head in always or any(c.text(row) for row in rows if row.error is None)]


LEGEND = (
    f"Brackets are {COVERAGE:.0%} intervals, standard errors standard deviations, both over {RESAMPLES} bootstrap samples of the "
    "questions (of clusters of questions, where the task names them), scored again by the task's own aggregation; ratios and "
    "gains are paired: the same questions are drawn for both. A gain is positive where the row is better, also where lower "
    "scores are. Percent mark shares; pp are percentage points; other numbers are as the task gives them."
)


def title(row: Row) -> str:
    """What a table is about: model, task, metric, questions, version."""
    if row.metric is None:
        return f"{row.model}, {row.task}"
    way = "higher is better" if row.higher_is_better else "lower is better"
    task = row.task if row.group is None else f"{row.group} / {row.task}"
    version = "" if row.version is None else f", version {row.version}"
    return f"{row.model}, {task}, {row.metric} ({row.aggregation}, {way}), {row.questions} questions{version}"


def notes(rows: Sequence[Row]) -> list[str]:
    """What is to be said below a table: why intervals are missing, which tests were made, what failed."""
    reasons = dict.fromkeys(r.without_interval for r in rows if r.without_interval is not None)
    together = dict.fromkeys(r.cluster for r in rows if r.cluster is not None)
    tests = dict.fromkeys(
        f"p: {r.test}" + (f", corrected over the table ({r.correction})" if r.correction else "")
        for r in rows
        if r.test
    )
    lost = [f"{r.method} {r.keep}: {r.state}, {r.error}" for r in rows if r.error is not None]
    outside = [
        f"{r.method} {r.keep}: no gain over random, {r.control}"
        for r in rows
        if r.control is not None and r.vs_random is None
    ]
    drawn = [f"Questions of one {name} are drawn together" for name in together]
    return [*(f"No interval: {reason}" for reason in reasons), *drawn, *tests, *outside, *lost]


def number(value: float, sign: str = "") -> str:
    """Five significant digits at most, no exponent below a million."""
    value += 0.0  # no -0
    return f"{value:{sign},.5g}" if abs(value) < 1e6 else f"{value:{sign}.5g}"


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return ""
    between = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{100 * value:.1f} %{between}"


def difference(row: Row, value: float | None, low: float | None, high: float | None) -> str:
    """A difference of scores in the metric's unit, percentage points for shares."""
    if value is None:
        return ""
    if row.share:
        between = "" if low is None or high is None else f" [{_signed(100 * low, 0)}, {_signed(100 * high, 0)}]"
        return f"{_signed(100 * value, 1)} pp{between}"
    between = "" if low is None or high is None else f" [{number(low, '+')}, {number(high, '+')}]"
    return f"{number(value, '+')}{between}"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # no -0


def score(row: Row) -> str:
    """The score by itself."""
    if row.score is None:
        return "" if row.metric is None else "none"
    return percent(row.score) if row.share else number(row.score)


def _score(row: Row) -> str:
    if row.score is None or row.score_low is None or row.score_high is None:
        return score(row)
    if row.share:
        return f"{score(row)} ± {100 * (row.score_se or 0):.1f} [{100 * row.score_low:.0f}, {100 * row.score_high:.0f}]"
    return f"{score(row)} ± {number(row.score_se or 0)} [{number(row.score_low)}, {number(row.score_high)}]"


def _seeds(row: Row) -> str:
    if row.seeds == 1 or row.seed_sd is None:
        return ""
    return f"{row.seeds} (sd {100 * row.seed_sd:.1f} pp)" if row.share else f"{row.seeds} (sd {number(row.seed_sd)})"


def _tokens(row: Row) -> str:
    if row.tokens_in is None or row.equivalent_tokens is None:
        return ""
    return f"{row.equivalent_tokens:.0f} of {row.tokens_in:.0f}"


def _against(row: Row) -> str:
    if row.against is None:
        return ""
    p = row.p_value if row.p_corrected is None else row.p_corrected
    shown = difference(row, row.difference, row.difference_low, row.difference_high)
    return f"{row.against}: {shown}" + ("" if p is None else f", p {'< 0.001' if p < 0.001 else f'{p:.3f}'}")


def _first_token(row: Row) -> str:
    if row.ttft_share is None:
        return ""
    low, high = row.ttft_share_low, row.ttft_share_high
    return percent(row.ttft_share) + ("" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})")
