"""Faults of the bare models, found by running them: no reduction can mend them, and none should be blamed for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from tokenreduce.eval import tiny_models

from .check import TOLERANCE, Family
from .shortened import decoder_of, hooked

#: ways to write besides the default, which should write the same
WAYS: dict[str, dict[str, Any]] = {
    "with a static cache": {"cache_implementation": "static", "disable_compile": True},
    "without a cache": {"use_cache": False},
}


@torch.no_grad()
def faults(key: str) -> list[str]:
    """What is wrong with the bare models of ``key``, in sentences with what to do; none where they cannot even be built."""
    try:
        family = Family(key)
        family.bare(**family.inputs)
    except Exception:
        return []  # the checks of the stages say so
    bare = f"{key}: the bare model of transformers {transformers.__version__}"
    found = [unmended(key, family), mixed_up_beams(key, family), *other_ways(family)]
    return [f"{bare} {what}" for what in found if what]


def unmended(key: str, family: Family) -> str:
    """What the model does that its tiny one is mended not to do."""
    known = tiny_models.KNOWN[key]
    if not known.fault:
        return ""
    plain = tiny_models.build(key, "eager", mended=False)
    try:
        worst = (plain(**family.inputs).logits - family.bare(**family.inputs).logits).abs().max().item()
    except Exception as error:
        return f"raises {type(error).__name__} in its forward pass: {known.fault}"
    return known.fault if worst > TOLERANCE else ""


def mixed_up_beams(key: str, family: Family) -> str:
    """Whether rows that repeat one prompt are shown different pictures."""
    given: dict[str, Any] = {}

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.update({} if given else kwargs)

    try:
        with hooked(decoder_of(family.bare).register_forward_pre_hook(catch, with_kwargs=True)):
            family.bare.generate(**family.inputs, max_new_tokens=1, do_sample=False, num_beams=2)
    except Exception as error:
        return f"writes no beams: {error}"
    if given.get("inputs_embeds") is None:
        return ""  # what joins the text elsewhere cannot be told apart here
    rows = given["inputs_embeds"].unflatten(0, (-1, 2))
    if torch.equal(rows[:, 0], rows[:, 1]):
        return ""
    return (
        "shows the beams of a sample with several pictures different ones, and the wrapped model warns of it; use num_beams=1, "
        "or one picture in each sample"
    )


def other_ways(family: Family) -> list[str]:
    """Ways in which the model writes something else than by default, or nothing."""
    asked = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    plain = family.bare.generate(**family.inputs, **asked).logits
    found = []
    for name, way in WAYS.items():
        try:
            own = family.bare.generate(**family.inputs, **asked, **way).logits
        except Exception as error:
            found.append(
                f"writes nothing {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            continue
        worst = max((a - b).abs().max().item() for a, b in zip(own, plain, strict=True))
        if worst > TOLERANCE:
            found.append(f"gives other logits {name}, by {worst:.2g}; write in another way")
    return found
