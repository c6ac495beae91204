"""Whether methods can act on one model together."""

from __future__ import annotations

from collections.abc import Sequence

from tokenreduce.method import Method, Step


def check_together(steps: Sequence[tuple[Method, Step]]) -> None:
    """Raise where methods cannot act on one model together."""
    if len({step.layer for _, step in steps if step.stage == "pixels"}) > 1:
        raise ValueError(
            f"methods={[m.name for m, step in steps if step.stage == 'pixels']} of stage 'pixels' act in front of different "
            "blocks of the vision tower; allowed: the same block"
        )
    reading = [method.name for method, step in steps if step.stage == "decode"]
    if len(reading) > 1:
        raise ValueError(
            f"methods={reading} choose what is read while decoding in {len(reading)} steps; allowed: one step of stage 'decode'"
        )
    coding = [method.name for method, step in steps if step.codec is not None]
    if len(coding) > 1:
        raise ValueError(f"methods={coding} hold the cache in few bits, each in its own way; allowed: one of them")
    passing = [(method.name, step.layer) for method, step in steps if step.when == "layer"]
    later = [m.name for m, step in steps if step.stage in ("llm", "cache", "decode") and step.when != "layer"]
    names = {name for name, _ in passing}
    if passing and (later or len(names) > 1 or len(set(passing)) < len(passing)):
        raise ValueError(
            f"methods={sorted(names)} let tokens pass by decoder layers, beside methods={later} inside the language model; "
            "allowed: one such method, beside methods of the stages 'pixels', 'encoder' and 'projector'"
        )
    split = [method.name for method, step in steps if step.split]
    inner = sorted({m.name for m, step in steps if step.stage in ("llm", "cache", "decode") and not step.split})
    if split and (inner or len(split) > 1):
        raise ValueError(
            f"methods={split} have the text behind a picture read by what is left of it in the cache, beside "
            f"methods={inner} inside the language model; allowed: one such method, beside methods of the stages 'pixels', "
            "'encoder' and 'projector'"
        )
    first, inside = (
        next((m.name for m, step in steps if step.stage == stage), None) for stage in ("pixels", "encoder")
    )
    if first is not None and inside is not None:
        raise ValueError(
            f"method={inside!r} merges inside the vision tower, but method={first!r} leaves it only a part of the picture; "
            "allowed with a method of stage 'pixels': methods of the stages 'projector', 'llm', 'cache' and 'decode'"
        )
