"""``tokenreduce bench ops``: every operation against a plain formulation of the same mathematics, and the roofline."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from . import ops
from .ops.case import Case
from .timing import limits, peak_bytes, spread, take_turns

ROUNDS = 5
OPERATIONS = tuple(sorted(m.name for m in pkgutil.iter_modules(ops.__path__) if m.name != "case"))


def chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """The operations ``names``, or all.

    Errors: ``ValueError`` for a name that is none of them.
    """
    for name in names or ():
        if name not in OPERATIONS:
            raise ValueError(f"--only={name!r} is no operation; allowed: {', '.join(OPERATIONS)}")
    return tuple(names or OPERATIONS)


def cases(name: str, device: torch.device, *, smallest: bool = False) -> list[dict[str, int]]:
    """Sizes to measure operation ``name`` at; with ``smallest`` that one alone."""
    module = importlib.import_module(f"{ops.__name__}.{name}")
    if smallest:
        return [min(module.SIZES, key=lambda size: math.prod(size.values()))]
    return [size for size in module.SIZES if device.type == "cuda" or math.prod(size.values()) <= module.CPU_LIMIT]


def measure(
    names: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    rounds: int = ROUNDS,
    advance: Callable[[str], None] = lambda what: None,
    *,
    smallest: bool = False,
) -> dict[str, Any]:
    """Rows and device limits, as plain numbers. An operation is timed only after its result equals the plain one's."""
    most = limits(device, dtype)
    rows = []
    for name in names:
        module = importlib.import_module(f"{ops.__name__}.{name}")
        for size in cases(name, device, smallest=smallest):
            advance(f"{name} {_text(size)}")
            torch.manual_seed(0)
            rows.append(_row(name, size, module.case(size, device, dtype), rounds, device, most))
    return {"rows": rows, "limits": asdict(most), "rounds": rounds}


def _row(name: str, size: dict[str, int], case: Case, rounds: int, device: torch.device, most: Any) -> dict[str, Any]:
    with torch.inference_mode():
        difference = case.difference(case.ours(), case.plain())
    if not difference <= case.tolerance:
        raise RuntimeError(
            f"{name} at {_text(size)} differs from the plain formulation by {difference:.3g} (at most {case.tolerance:g})"
        )
    laps = take_turns({"ours": case.ours, "plain": case.plain}, rounds, device)
    seconds = most.seconds(case.flops, case.bytes)
    return {
        "operation": name,
        "size": size,
        "note": case.note,
        "ours_ms": spread([s * 1e3 for s in laps["ours"]]),
        "plain_ms": spread([s * 1e3 for s in laps["plain"]]),
        "speedup": spread([p / o for o, p in zip(laps["ours"], laps["plain"])]),
        "roofline_share": seconds / min(laps["ours"]),
        "gflops": case.flops / 1e9,
        "mib": case.bytes / 2**20,
        "peak_mib": peak_bytes(case.ours, device) / 2**20,
        "plain_peak_mib": peak_bytes(case.plain, device) / 2**20,
        "difference": difference,
    }


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the terminal shows of ``rows``."""
    return [
        {
            "operation": row["operation"],
            "size": _text(row["size"]),
            "ms": f"{row['ours_ms']['median']:.3g}",
            "plain ms": f"{row['plain_ms']['median']:.3g}",
            "speed-up": f"{row['speedup']['median']:.2f}x [{row['speedup']['low']:.2f}, {row['speedup']['high']:.2f}]",
            "of roofline": f"{row['roofline_share']:.0%}",
            "peak MiB": f"{row['peak_mib']:.3g}",
            "plain MiB": f"{row['plain_peak_mib']:.3g}",
        }
        for row in rows
    ]


def _text(size: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in size.items())
