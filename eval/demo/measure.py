"""The demo question set answered and timed under reduction: one row per method and budget."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenreduce.registry import shortens
from tokenreduce.timing import REPEATS, Lap, Spread, speed_up, time_prefill

from .scene_questions import KINDS, Question

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH = 32  # questions answered together
TIMED = 8  # prompts in the batch that is timed


@dataclass(frozen=True)
class Row:
    """One line of a table: a method at a budget on a split.

    ``tokens`` is left in the last decoder layer, ``layer_average`` over all layers. ``interval`` is Wilson's 95 %
    interval of ``accuracy``; ``same_replies`` the share of replies equal to the unreduced model's. GFLOPs, KiB and
    milliseconds are per sample. ``prefill`` leaves the vision tower out, ``first_token`` includes it and with it every
    signal that a method reads there.
    """

    split: str
    method: str
    keep: float | int
    tokens: int
    tokens_in: int
    layer_average: float
    questions: int
    accuracy: float
    interval: tuple[float, float]
    accuracy_by_kind: dict[str, float]
    same_replies: float
    prefill_gflops: float
    kv_kib: float
    method_ms: float
    prefill_ms: float
    first_token_ms: float
    prefill_speedup: Spread
    first_token_speedup: Spread


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Lower and upper end of Wilson's score interval for ``right`` of ``n``; z = 1.96 covers 95 %.

    Questions about one picture are counted as independent.

    >>> [round(x, 3) for x in wilson(90, 100)]
    [0.826, 0.945]
    """
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n)))


class Bench:
    """The loaded model with the questions of its splits, encoded once and answered under any reduction."""

    def __init__(self, model: Any, processor: Any, asked: Sequence[Question]) -> None:
        self.model, self.processor, self.asked = model, processor, list(asked)
        # pixels once per picture; questions of similar length share a batch, so that little is padding
        pictures = {q.index: q.image for q in self.asked}
        place = {index: i for i, index in enumerate(pictures)}
        self.pixels = processor.image_processor(images=list(pictures.values()), return_tensors="pt")["pixel_values"]
        encoded = self.encode(self.asked)
        length = encoded["attention_mask"].sum(dim=1)
        order = length.argsort(stable=True)
        self.batches = []
        for part in order.split(BATCH):
            width = int(length[part].max())
            self.batches.append(
                {
                    "rows": part.tolist(),
                    "input_ids": encoded["input_ids"][part, -width:],
                    "attention_mask": encoded["attention_mask"][part, -width:],
                    "pixels": [place[self.asked[i].index] for i in part.tolist()],
                }
            )

    def encode(self, asked: Sequence[Question]) -> dict[str, torch.Tensor]:
        """Token ids and mask (B, L), left-padded, with one placeholder per image token."""
        from .model import PROMPT

        marks = self.processor.image_token * self.tokens_per_image
        text = [PROMPT.format(question=q.question).replace(self.processor.image_token, marks) for q in asked]
        found = self.processor.tokenizer(text, return_tensors="pt", padding=True)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    @property
    def tokens_per_image(self) -> int:
        vision = self.model.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def inputs(self, batch: Mapping[str, Any], count: int | None = None) -> dict[str, torch.Tensor]:
        """What the model is called with for ``batch``, or for its first ``count`` prompts."""
        made = {
            "input_ids": batch["input_ids"][:count],
            "attention_mask": batch["attention_mask"][:count],
            "pixel_values": self.pixels[batch["pixels"][:count]].to(self.model.dtype),
        }
        return {name: value.to(self.model.device) for name, value in made.items()}

    def replies(self, advance: Callable[[int], None] = lambda n: None) -> list[str]:
        """The model's greedy answers to all questions, in their order."""
        import torch

        from . import replies

        found = [""] * len(self.asked)
        with torch.inference_mode():
            for batch in self.batches:
                out = self.model.generate(**self.inputs(batch), do_sample=False, use_cache=True)
                for row, reply in zip(batch["rows"], replies(self.processor, out, batch["input_ids"].shape[1])):
                    found[row] = reply
                advance(len(batch["rows"]))
        return found


def servable(model: nn.Module, names: Sequence[str], keeps: Sequence[float | int]) -> dict[str, str]:
    """Why the methods ``names`` that this model cannot serve at all of ``keeps`` cannot be served; empty when it serves all."""
    import tokenreduce as tr

    reasons = {}
    media = {row["name"]: row["media"] for row in tr.methods()}
    for name in names:
        if not shortens(name):
            reasons[name] = "what is left of a picture is not said by keep, so that no budget is filled"
            continue
        if "image" not in media[name]:
            reasons[name] = f"it reduces {media[name]} only; see the table of videos"
            continue
        try:
            for keep in keeps:
                with tr.wrapped(model, name, keep=keep):
                    pass
        except (TypeError, ValueError) as error:
            reasons[name] = str(error)
    return reasons


def measure(
    bench: Bench,
    split: str,
    methods: Sequence[str],
    keeps: Sequence[float | int],
    advance: Callable[[str, int], None],
    repeats: int = REPEATS,
) -> list[Row]:
    """One row for the unreduced model, then one per method and budget; ``advance(what, questions)`` tells progress."""
    import tokenreduce as tr

    def arm(name: str, keep: float | int) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: tr.wrapped(bench.model, name, keep=keep)

    sample = bench.inputs(bench.batches[len(bench.batches) // 2], TIMED)
    whole = bench.replies(functools.partial(advance, "unreduced"))
    # all tokens kept changes nothing, and counts the unreduced model's FLOPs and bytes
    full = time_prefill(bench.model, sample, {"full": arm(methods[0], 1.0)}, repeats=1)["full"][0].report
    rows: list[Row] = []
    for name in methods:
        arms = {"unreduced": nullcontext} | {f"{keep}": arm(name, keep) for keep in keeps}
        laps = time_prefill(bench.model, sample, arms, repeats, by_stage=True)
        plain = laps["unreduced"]
        if not rows:
            rows.append(_row(bench, (split, "unreduced", 1.0), whole, whole, (plain, plain), [full], 0.0))
        for keep in keeps:
            with arm(name, keep)():
                given = bench.replies(functools.partial(advance, name))
            reports = [lap.report for lap in laps[f"{keep}"] if lap.report is not None]
            cost = statistics.median(report.method_ms for report in reports)
            rows.append(_row(bench, (split, name, keep), given, whole, (plain, laps[f"{keep}"]), reports, cost))
    return rows


def _row(
    bench: Bench,
    place: tuple[str, str, float | int],
    given: list[str],
    whole: list[str],
    laps: tuple[list[Lap], list[Lap]],
    reports: list[Any],
    method_ms: float,
) -> Row:
    from . import accuracy, right

    marks, report = accuracy(given, bench.asked), reports[-1]
    samples = len(report.tokens_in)
    total = [[lap.total_s for lap in arm] for arm in laps]
    prefill = [[lap.total_s - lap.seconds["tower"] for lap in arm] for arm in laps]
    return Row(
        *place,
        tokens=report.tokens_kept[0][0],
        tokens_in=report.tokens_in[0][0],
        layer_average=report.equivalent_tokens[0],
        questions=len(given),
        accuracy=marks["all"],
        interval=wilson(sum(right(r, q.answer) for r, q in zip(given, bench.asked)), len(given)),
        accuracy_by_kind={kind: marks[kind] for kind in KINDS if kind in marks},
        same_replies=sum(a == b for a, b in zip(given, whole)) / len(given),
        prefill_gflops=report.flops / samples / 1e9,
        kv_kib=report.kv_bytes / samples / 1024,
        method_ms=method_ms / samples,
        prefill_ms=statistics.median(prefill[1]) / samples * 1e3,
        first_token_ms=statistics.median(total[1]) / samples * 1e3,
        prefill_speedup=speed_up(*prefill),
        first_token_speedup=speed_up(*total),
    )
