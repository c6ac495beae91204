"""Whether a model can serve a step of stage ``cache``, by what the step says of caches and of the text behind a picture."""

from __future__ import annotations

from tokenreduce.method import Step
from tokenreduce.model_facts import ModelFacts


def check_cache_step(name: str, step: Step, facts: ModelFacts) -> None:
    """Raise where ``step`` of the method ``name`` says something of the cache that goes with nothing, or not together."""
    if step.codec is not None and (step.stage != "cache" or step.through is not None):
        raise ValueError(
            f"method={name!r}: {step} has a codec; allowed: at stage 'cache', without through and survivors_of"
        )
    if (step.through is None) != (step.survivors_of is None):
        raise ValueError(f"method={name!r}: {step} has one of through and survivors_of; allowed: both, or neither")
    if step.through is not None and step.survivors_of is not None:
        last = facts.decoder_depth - 1
        if step.stage != "cache" or not (step.layer or 0) <= step.through < step.survivors_of <= last or step.needs:
            raise ValueError(
                f"method={name!r}: {step}; allowed at stage 'cache', without needs: layer <= through < survivors_of <= {last}"
            )
    if step.split and (step.stage != "cache" or step.codec is not None or step.through is not None):
        raise ValueError(
            f"method={name!r}: {step} has split=True; allowed: at stage 'cache', without codec, through and survivors_of"
        )
    if step.chunks is None:
        return
    whole = isinstance(step.chunks, tuple) and [type(n) for n in step.chunks] == [int, int]
    if not step.split or not whole or step.chunks[0] < 1 or step.chunks[1] < 0:
        raise ValueError(
            f"method={name!r}: chunks={step.chunks!r} with split={step.split}; allowed: with split=True, (frames of a chunk, 1 "
            "or more; chunks before it that it sees, 0 or more), or None"
        )
