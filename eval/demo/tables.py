"""What ``tokenreduce demo`` shows in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .measure import Row
from .video import VideoRow

if TYPE_CHECKING:
    from rich.table import Table


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows of one split as a rich table of 80 columns, a section per method."""
    from rich import box
    from rich.table import Table as RichTable

    made = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    made.add_column("method", no_wrap=True)
    heads = ("tokens\n(mean of\nlayers)", "accuracy %\n[95 %\ninterval]", "prefill\nGFLOPs")
    for head in (*heads, "prefill\nspeed-up\n[range]", "first\ntoken\nsp.-up", "KV\ncache\nKiB"):
        made.add_column(head, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if last not in (None, row.method) and len({r.keep for r in rows[1:]}) > 1:
            made.add_section()
        low, high = (100 * x for x in row.interval)
        speed, first = row.prefill_speedup, row.method == "unreduced"
        made.add_row(
            row.method if row.method != last else "",
            f"{row.tokens}" + (f" ({row.layer_average:.0f})" if row.layer_average != row.tokens else ""),
            f"{100 * row.accuracy:.1f} \\[{low:.0f}, {high:.0f}]",
            f"{row.prefill_gflops:.3f}",
            "1" if first else f"{speed.median:.2f} \\[{speed.low:.1f}, {speed.high:.1f}]",
            "1" if first else f"{row.first_token_speedup.median:.2f}",
            f"{row.kv_kib:,.0f}",
            style="bold" if first else None,
        )
        last = row.method
    return made


def video_table(rows: Sequence[VideoRow], keep: float) -> Table:
    """The rows of the videos as a rich table."""
    from rich import box
    from rich.table import Table as RichTable

    title = f"video: 8 frames as images, {keep:.0%} of the tokens, {rows[0].questions} questions"
    made = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for head in ("way", "tokens\n(mean of\nlayers)", "accuracy %\n[95 %\ninterval]"):
        made.add_column(head, justify="left" if head == "way" else "right", no_wrap=True)
    for row in rows:
        low, high = (100 * x for x in row.interval)
        tokens = f"{row.tokens_last_layer:,} ({row.tokens_layer_average:,.0f})"
        made.add_row(row.arm, tokens, f"{100 * row.accuracy:.1f} \\[{low:.0f}, {high:.0f}]")
    return made
