"""``tokenreduce bench models``: prefill, decoding, memory and the method's own cost, against the model unreduced."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from .shapes import DEMO
from .timing import moment, peak_bytes, seconds, spread

if TYPE_CHECKING:
    import torch

    from tokenreduce.cost import Report
    from tokenreduce.timing import Spread

    from .shapes import Shape

ROUNDS = 5
DECODED = 16  # tokens that decoding is timed over
LAYERS = {"cpu": (3, 4), "cuda": (32, 26)}  # decoder and tower layers at most, by the device


def layers_for(shape: Shape, device: torch.device, layers: int | None, tower_layers: int | None) -> tuple[int, int]:
    """Decoder and tower layers to build: what was asked for, else what fits the device; never more than published."""
    if shape.model == DEMO:
        return shape.depth, shape.tower_depth
    most = LAYERS.get(device.type, LAYERS["cpu"])
    return min(layers or most[0], shape.depth), min(tower_layers or most[1], shape.tower_depth)


def methods_for(model: Any, shape: Shape, names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Methods to measure on ``model``, and why the others are left out.

    Errors: ``ValueError`` when a method asked for cannot be attached.
    """
    import tokenreduce as tr

    media = {row["name"]: row["media"] for row in tr.methods()}
    found, reasons = [], {}
    for name in names or media:
        if name not in media:
            raise ValueError(f"--methods names {name!r}; allowed: {', '.join(media)}")
        try:
            if shape.media not in media[name]:
                raise ValueError(f"it reduces {media[name]}, not {shape.media}")
            with tr.wrapped(model, name, keep=shape.keep):
                found.append(name)
        except ValueError as error:
            if names:
                raise ValueError(f"--methods names {name!r}, which cannot be measured here: {error}") from None
            reasons[name] = str(error)
    return found, reasons


def measure(
    model: Any,
    inputs: dict[str, Any],
    names: Sequence[str],
    keep: float | int,
    depth: int,
    rounds: int = ROUNDS,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row per method, each measured in turn with the unreduced model; ``depth``: decoder layers as published.

    Prefill is the decoder's part of a forward pass, with what the method does at its door. Where the model has fewer layers
    than ``depth``, what they save is scaled up before the method's own cost is put against it.
    """
    import tokenreduce as tr
    from tokenreduce.timing import speed_up, time_prefill, with_seconds

    def arm(name: str) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: tr.wrapped(model, name, keep=keep)

    layers, batch = model.config.get_text_config().num_hidden_layers, len(inputs["input_ids"])
    rows = []
    for name in names:
        advance(f"{name}, batch {batch}")
        arms = {"unreduced": nullcontext, name: arm(name)}
        laps = time_prefill(model, inputs, arms, rounds, by_stage=True)
        cost = laps[name][-1].report
        assert cost is not None, "wrapped"
        before, after = ([lap.seconds["prefill"] for lap in laps[arm]] for arm in arms)
        own = [lap.report.method_ms / 1e3 for lap in laps[name] if lap.report is not None]
        saved = [(b - a) * depth / layers for b, a in zip(before, after)]
        ideal = cost.flops_unreduced / cost.flops
        gained = speed_up(before, after)
        allowed = products(model, inputs, cost, rounds)
        decode = decoding(model, inputs, arms, rounds)
        step = [statistics.median(decode[arm]) / 1e3 for arm in (name, "unreduced")]
        bill = with_seconds(cost, laps[name], laps["unreduced"], step=(step[0], step[1]))
        rows.append(
            {
                "method": name,
                "batch": batch,
                "tokens_in": cost.tokens_in[0][0],
                "tokens": cost.tokens_kept[0][0],
                "prefill_ms": spread([s * 1e3 for s in after]),
                "unreduced_prefill_ms": spread([s * 1e3 for s in before]),
                "tower_ms": spread([lap.seconds["tower"] * 1e3 for lap in laps[name]]),
                "unreduced_tower_ms": spread([lap.seconds["tower"] * 1e3 for lap in laps["unreduced"]]),
                "prefill_speedup": dataclasses.asdict(gained),
                "flops_ideal": ideal,
                "of_ideal": gained.median / ideal,
                "products_speedup": dataclasses.asdict(allowed),
                "of_products": gained.median / allowed.median,
                "first_token_ms": spread([lap.total_s * 1e3 for lap in laps[name]]),
                "unreduced_first_token_ms": spread([lap.total_s * 1e3 for lap in laps["unreduced"]]),
                "first_token_speedup": dataclasses.asdict(
                    speed_up(*([lap.total_s for lap in laps[arm]] for arm in arms))
                ),
                "by_stage": bill.as_dict()["by_stage"],
                "own_ms": spread([o * 1e3 for o in own]),
                "own_share_of_saved": statistics.median(o / s for o, s in zip(own, saved)),
                "decode_ms_per_token": {arm: spread(decode[arm]) for arm in arms},
                "kv_mib": cost.kv_bytes / 2**20,
                "unreduced_kv_mib": cost.kv_bytes_unreduced / 2**20,
                "peak_mib": peak_mib(model, inputs, arms),
            }
        )
    return rows


def products(model: Any, inputs: dict[str, Any], cost: Report, rounds: int) -> Spread:
    """What the matrix products of the decoder alone gain when each layer works on the tokens that ``cost`` counts.

    Fewer rows run at another speed on most devices, and read as many weights; attention, norms and hooks are left out.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from tokenreduce.timing import speed_up

    ids, visual = inputs["input_ids"], sum(cost.tokens_in[0])
    rows = [len(ids) * (ids.shape[1] - visual + max(layer)) for layer in cost.tokens_at_layer]
    weights = [m.weight for m in model.get_decoder().layers[0].modules() if isinstance(m, nn.Linear)]

    def layer(count: int) -> float:
        given = {w.shape[1]: torch.randn(count, w.shape[1], dtype=w.dtype, device=w.device) for w in weights}
        return seconds(lambda: [F.linear(given[w.shape[1]], w) for w in weights], model.device)

    before, after = [], []
    with torch.inference_mode():
        layer(min(rows))
        for _ in range(rounds):
            took = {count: layer(count) for count in {ids.numel(), *rows}}
            before.append(len(rows) * took[ids.numel()])
            after.append(sum(took[count] for count in rows))
    return speed_up(before, after)


def decoding(model: Any, inputs: dict[str, Any], arms: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per token after the first, per arm and round: the median time from one forward pass to the next."""
    ends: list[float] = []

    def note(*_: Any) -> None:
        ends.append(moment(model.device))

    handle = model.register_forward_hook(note)
    found: dict[str, list[float]] = {name: [] for name in arms}
    try:
        for _ in range(rounds):
            for name, context in arms.items():
                ends.clear()
                with context():
                    model.generate(**inputs, min_new_tokens=1 + DECODED, max_new_tokens=1 + DECODED, do_sample=False)
                found[name].append(statistics.median(b - a for a, b in itertools.pairwise(ends)) * 1e3)
    finally:
        handle.remove()
    return found


def peak_mib(model: Any, inputs: dict[str, Any], arms: dict[str, Any]) -> dict[str, float] | None:
    """Most memory beyond the weights during one prefill, per arm; None where the device does not count it."""
    if model.device.type != "cuda":
        return None

    def peaks() -> Iterator[tuple[str, float]]:
        for name, context in arms.items():
            with context():
                yield name, peak_bytes(lambda: model(**inputs, logits_to_keep=1), model.device) / 2**20

    return dict(peaks())


def table(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What is printed of ``content``; pairs are milliseconds unreduced / reduced, the share of the own cost is of the
    unreduced prefill."""
    return [
        {
            "model": content["shape"],
            "device": where(content),
            "method": row["method"],
            "budget": f"{content['keep']}",
            "batch": row["batch"],
            "visual tokens": f"{row['tokens_in']} to {row['tokens']}",
            **{f"{stage}, ms": _pair(*stage_times(row, stage)) for stage in ("tower", "prefill", "decode")},
            "first token": _gain(row["first_token_speedup"]),
            "prefill speed-up": _gain(row["prefill_speedup"]),
            "ideal": f"{row['flops_ideal']:.2f}x",
            "of ideal": f"{row['of_ideal']:.0%}",
            "own cost": f"{own:.1f} ms, {own / row['unreduced_prefill_ms']['median']:.1%}",
        }
        for row in content["rows"]
        for own in [row["own_ms"]["median"]]
    ]


def where(content: dict[str, Any]) -> str:
    """The device of ``content``, and the number format."""
    at = content["environment"]
    device = f"{at['cpu']}, {at['threads']} thread(s)" if at["device"] == "cpu" else at["device"]
    return f"{device}, {content['dtype']}"


def stage_times(row: dict[str, Any], stage: str) -> tuple[float, float]:
    """Median milliseconds of ``tower``, ``prefill`` or a step of ``decode``, unreduced and reduced."""
    if stage == "decode":
        before, after = row["decode_ms_per_token"].values()
    else:
        before, after = row[f"unreduced_{stage}_ms"], row[f"{stage}_ms"]
    return before["median"], after["median"]


def _pair(before: float, after: float) -> str:
    return f"{before:.3g} / {after:.3g}" if before < 1000 else f"{before:,.0f} / {after:,.0f}"


def _gain(found: dict[str, float]) -> str:
    return f"{found['median']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"
