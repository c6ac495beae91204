"""What a prompt takes, unreduced beside reduced: time to first token, tower, prefill, a decode step, memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenreduce.cli.prompt import Prompt
    from tokenreduce.cost import Report
    from tokenreduce.method import Method
    from tokenreduce.timing import Spread

ROUNDS = 3  # of decoding; a prefill is timed as often as tokenreduce.timing says


@dataclass(frozen=True)
class Measured:
    """``report`` with seconds, the speed-up of the first token, ``rows``: by measure its unit, ``unreduced`` and ``reduced``."""

    report: Report
    speedup: Spread
    rows: dict[str, dict[str, Any]]

    def table(self) -> list[dict[str, str]]:
        """The rows as people read them."""
        return [
            {
                "measured": f"{name}, {row['unit']}",
                "unreduced": f"{row['unreduced']:.3g}",
                "reduced": f"{row['reduced']:.3g}",
                "": f"{row['unreduced'] / row['reduced']:.2f}x" if row["reduced"] else "-",
            }
            for name, row in self.rows.items()
        ]


def measured(asked: Prompt, chosen: Sequence[Method], report: Report) -> Measured:
    """Time ``asked`` under ``chosen`` in turns with the unreduced model, medians; ``report`` is that of one such prompt.

    Memory is the most that one prefill holds beyond the weights; where the device counts none, its largest single tensor.
    """
    import tokenreduce as tr
    from tokenreduce.eval.bench.models import decoding
    from tokenreduce.eval.bench.timing import peak_bytes
    from tokenreduce.timing import speed_up, time_prefill, with_seconds

    arms: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "unreduced": nullcontext,
        "reduced": lambda: tr.wrapped(asked.model, *chosen, images_as_video=asked.images_as_video),
    }
    laps = time_prefill(asked.model, asked.inputs, arms, by_stage=True)
    steps = decoding(asked.model, asked.inputs, arms, ROUNDS)
    device = next(asked.model.parameters()).device
    held = {}
    for name, arm in arms.items():
        with arm():
            held[name] = peak_bytes(lambda: asked.model(**asked.inputs, logits_to_keep=1), device) / 2**20
    total = {name: [lap.total_s for lap in laps[name]] for name in arms}
    stages = {name: {s: [lap.seconds[s] * 1e3 for lap in laps[name]] for s in laps[name][0].seconds} for name in arms}
    rows: dict[str, dict[str, Any]] = {}

    def add(measure: str, unit: str, of: dict[str, Any]) -> None:
        rows[measure] = {"unit": unit, **of}

    add("time to first token", "ms", {name: statistics.median(s) * 1e3 for name, s in total.items()})
    for stage, words in (("tower", "vision tower"), ("prefill", "prefill alone")):
        if all(stage in stages[name] for name in arms):
            add(words, "ms", {name: statistics.median(stages[name][stage]) for name in arms})
    add("decode per token", "ms", {name: statistics.median(s) for name, s in steps.items()})
    add("peak memory of the prefill" if device.type == "cuda" else "largest tensor of the prefill", "MiB", held)
    step = rows["decode per token"]
    billed = with_seconds(
        report, laps["reduced"], laps["unreduced"], step=(step["reduced"] / 1e3, step["unreduced"] / 1e3)
    )
    return Measured(billed, speed_up(total["unreduced"], total["reduced"]), rows)
