"""From pixels to the first token, a wrapped model reads from the device what it cannot know otherwise, and nothing twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from host_reads import Elsewhere, moved, recorded
from selections import in_language_models

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

#: function that reads, how often at most in one prompt, and why
ALLOWED = {
    "prompt_pictures.read_ahead": (
        2,
        "which columns hold images, and which are padding, decide every shape that follows",
    ),
    "packed_squares.grids": (1, "the patches of each picture decide every shape in the tower"),
    "visual_inputs.numbers": (1, "the patches of each picture decide every shape in the tower"),
    "masks.layer_mask": (
        2,
        "transformers asks whether a mask can be left out, once per kind of mask that is made anew",
    ),
}
#: the same of methods whose numbers of tokens follow from what a picture shows, or whose order is made on the host
ALLOWED_TO = {
    "dart": {"dart.reduce": (2, "parity with the release, whose order is that of a Python set")},
    "mustdrop": {"window_merging.merged_windows": (2, "windows merge where they are alike")},
    "prumerge": {"prumerge.reduce": (1, "as many tokens as there are outliers, where no budget says another number")},
    "prunesid": {
        "principal_groups.suppressed": (2, "rounds until every token is taken or set aside"),
        "principal_groups.select": (2, "groups have as many tokens as the picture gives them"),
    },
}
#: what a device that is none cannot carry out: seals of memory, and products that ask for storage
NOT_SEEN = ("id_selection", "pixelprune", "rlt", "zoo_prune")
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
        assert torch.tensor([1, 2], device=x.device).tolist() == [1, 2]  # waits twice: there and back
        assert torch.tensor([1, 2]).to(x.device, non_blocking=True).shape == (2,)
        kept = x[torch.arange(2, device=x.device)] * 2
    assert isinstance(kept, Elsewhere)
    assert len(reads) == 7
    assert {read.place for read in reads} == {None}


def read_by(model, inputs, *methods, **parameters) -> Counter:
    """Functions of this package that read from the device in the second prompt; what kernels do without one is their own."""
    inputs = {name: Elsewhere(x) for name, x in inputs.items()}
    with torch.no_grad(), tr.wrapped(model, *methods, **parameters), recorded() as reads:
        model(**inputs)  # the first time that a method acts, the values of its plan are looked at
        reads.clear()
        model(**inputs)
    return Counter(read.place for read in reads if read.room not in (None, "kernels"))


def held(counts: Counter, allowed: dict[str, tuple[int, str]]) -> None:
    """Nothing but what is ``allowed`` reads, and the prompt is read once, before its pictures are encoded."""
    for place, count in counts.items():
        assert place in allowed, f"{place} waits for the device {count} times"
        assert count <= allowed[place][0], place
    assert counts["prompt_pictures.read_ahead"] == 2


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize(("key", "kind"), [("llava", "single"), ("internvl", "mixed"), ("qwen2_5_vl", "single")])
def test_a_prompt_reads_no_more_than_it_must(key, kind, methods):
    model = zoo.build(key)
    inputs = zoo.inputs(key, kind, model)
    held(read_by(moved(model), inputs, *METHODS[methods]()), ALLOWED)


@pytest.fixture(scope="module")
def llava():
    model = zoo.build("llava")
    return moved(model), zoo.inputs("llava", "single", model)


@pytest.mark.parametrize("name", in_language_models())
def test_no_method_reads_more(name, llava):
    if name in NOT_SEEN or name == "downscale":
        pytest.skip("it cannot be followed on a device that is none")
    parameters = {"window": 2} if name == "mustdrop" else {}
    held(read_by(*llava, name, keep=0.5, **parameters), ALLOWED | ALLOWED_TO.get(name, {}))
