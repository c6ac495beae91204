"""What tests of stage ``decode`` share: the rule of ``ReadsSome`` once more, and what is written by it."""

from __future__ import annotations

import decode_oracle
import reduced
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

KEEP = 0.3


STEPS = 5


def some(keep: float = KEEP):
    """The rule of ``ReadsSome`` once more, for the oracle."""
    masses: dict[int, torch.Tensor] = {}

    def rule(rows):
        reads = []
        for i, row in enumerate(rows):
            mass = 2 * row + masses.get(i, 0)
            masses[i] = mass / 2
            order = sorted(range(len(row)), key=lambda n, mass=mass: (-float(mass[n]), n))
            reads.append(torch.isin(torch.arange(len(row)), torch.tensor(order[: round(keep * len(row))])))
        return reads

    return rule


def written(model, inputs: dict, **how):
    """Tokens (B, T) behind the prompt, and logits (B, T, V) in front of them."""
    how = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, **how}
    out = model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **how)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def columns_of(case: zoo.Case, trace: tr.Trace, b: int) -> list[torch.Tensor]:
    """The columns of each picture of sample ``b`` run alone."""
    padding = int(case.inputs["attention_mask"][b].int().argmax())
    return [image.columns - padding for image in trace.images if image.sample == b]


def oracle(key: str, case: zoo.Case, trace: tr.Trace, b: int, tokens: torch.Tensor) -> torch.Tensor:
    """(T, V) logits in front of ``tokens`` (T,) written to sample ``b``."""
    bare = reduced.model(key, "eager")
    with decode_oracle.reading(bare, 2, columns_of(case, trace, b), some()) as steps:
        found = decode_oracle.fed(bare, zoo.alone(key, case, b), tokens)
    assert len(steps) == len(tokens) - 1
    return found


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in units of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())
