"""From pixels to the first token, a wrapped model reads from the device what it cannot know otherwise, and nothing twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from host_reads import Elsewhere, moved, recorded

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

#: function that reads, how often at most in one prompt, and why
ALLOWED = {
    "base.placeholders": (1, "which columns hold images decides every shape that follows"),
    "sequence_packing.real_columns": (1, "how many columns of each row are padding"),
    "masks.layer_mask": (
        2,
        "transformers asks whether a mask can be left out, once per kind of mask that is made anew",
    ),
}
METHODS = {
    "projector": lambda: (tr.Uniform(keep=0.5),),
    "tower and llm": lambda: (tr.HiPrune(keep=0.5), tr.FastV(layer=2, keep=0.5)),
}


def test_reads_are_seen():
    x = Elsewhere(torch.tensor([1.0, 2.0, 3.0]))
    with recorded() as reads:
        assert x.sum().item() == 6
        assert bool((x > 0).all())
        assert x.tolist() == [1, 2, 3]
        assert x.cpu().device.type == "cpu"
        assert len(x[x > 1]) == 2
        assert torch.tensor([1, 2], device=x.device).tolist() == [1, 2]
        kept = x[torch.arange(2, device=x.device)] * 2
    assert isinstance(kept, Elsewhere)
    assert len(reads) == 6
    assert {read.place for read in reads} == {None}


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize(("key", "kind"), [("llava", "single"), ("internvl", "mixed")])
def test_a_prompt_reads_no_more_than_it_must(key, kind, methods):
    model = moved(zoo.build(key))
    inputs = {name: Elsewhere(x) for name, x in zoo.inputs(key, kind, model).items()}
    with torch.no_grad(), tr.wrapped(model, *METHODS[methods]()), recorded() as reads:
        model(**inputs)  # the first time that a method acts, the values of its plan are looked at
        reads.clear()
        model(**inputs)
    counts = Counter(read.place for read in reads if read.place is not None)
    for place, count in counts.items():
        assert place in ALLOWED, f"{place} reads from the device {count} times"
        assert count <= ALLOWED[place][0], place
    assert counts["base.placeholders"] == 1
