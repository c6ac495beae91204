"""DyCoke's second half: what new tokens read of a video, against the model with the rest taken out of its cache."""

from __future__ import annotations

import decode_oracle
import pytest
import reduced
import torch
import torch.nn.functional as F
from models import TRANSFORMERS

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.layout import Layout
from tokenreduce.methods.dycoke import DyCoke
from tokenreduce.tokens import VisualTokens

STEPS = 6
CACHE_KEEP = 0.4
FAMILIES = ["llava_onevision", "qwen2_5_vl", "internvl"]


class Paper:
    """The paper's rule, row by row: choose anew where attention turned elsewhere, and else reuse or read everything."""

    def __init__(self, threshold: float, full: bool = False) -> None:
        self.threshold, self.full = threshold, full
        self.before: dict[int, torch.Tensor] = {}
        self.chosen: dict[int, torch.Tensor] = {}
        self.cosines: list[float] = []

    def __call__(self, rows):
        return [self.of(i, row) for i, row in enumerate(rows)]

    def of(self, i: int, row: torch.Tensor) -> torch.Tensor:
        before, self.before[i] = self.before.get(i), row
        cosine = 0.0 if before is None else float(F.cosine_similarity(row, before, dim=0))
        self.cosines.append(cosine)
        if cosine >= self.threshold:
            return torch.ones(len(row), dtype=torch.bool) if self.full else self.chosen[i]
        order = sorted(range(len(row)), key=lambda n: (-float(row[n]), n))[: int(CACHE_KEEP * len(row))]
        self.chosen[i] = torch.isin(torch.arange(len(row)), torch.tensor(order))
        return self.chosen[i]


def method(threshold: float, layer: int = 2, **more) -> DyCoke:
    return DyCoke(keep=0.6, cache_keep=CACHE_KEEP, layer=layer, threshold=threshold, **more)


def wrapped(key: str, model, method: DyCoke):
    """InternVL's frames come as pictures, one placeholder for both."""
    return tr.wrapped(model, method, images_as_video=key == "internvl")


def written(model, inputs: dict, **how):
    """Tokens (B, T) behind the prompt, and logits (B, T, V) in front of them."""
    given = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, **how}
    out = model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **given)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def oracle(key: str, inputs: dict, tokens: torch.Tensor, rule: Paper) -> torch.Tensor:
    """Logits (T, V) in front of ``tokens`` (T,) written to one sample without padding, after the temporal part alone."""
    bare = reduced.model(key, "eager")
    with wrapped(key, bare, DyCoke(keep=0.6)):
        bare(**inputs)
        trace = tr.trace(bare)
        left = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
        for image in trace.images:
            left[image.columns] = False
            left[image.seats()] = True
        slot = left.cumsum(0) - 1
        videos = [slot[image.seats()] for image in trace.images if image.layout.medium == "video"]
        with decode_oracle.reading(bare, 2, videos, rule):
            return decode_oracle.fed(bare, inputs, tokens)


def inside(key: str, inputs: dict) -> float:
    """A threshold among the cosines of this very prompt, so that tokens fall on both sides."""
    rule = Paper(threshold=1.1)
    model = reduced.model(key)
    with wrapped(key, model, method(1.0)):
        tokens, _ = written(model, inputs)
    oracle(key, inputs, tokens[0], rule)
    cosines = sorted(c for c in rule.cosines if c > 0)
    return (cosines[len(cosines) // 2 - 1] + cosines[len(cosines) // 2]) / 2


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("on_stable", ["reuse", "full"])
@pytest.mark.parametrize("key", FAMILIES)
def test_it_equals_a_cache_without_what_is_not_read(key, on_stable):
    """A padded batch; of a sample with a picture and a video, the video alone is chosen from."""
    model = reduced.model(key)
    kind = "videos" if "videos" in zoo.kinds(key) and key != "internvl" else "video"
    case = zoo.case(key, kind, model)
    threshold = inside(key, zoo.alone(key, case, 0))
    with wrapped(key, model, method(threshold, on_stable=on_stable)):
        tokens, logits = written(model, case.inputs)
        static = written(model, case.inputs, cache_implementation="static", disable_compile=True)
    sides = set()
    for b, row in enumerate(tokens):
        rule = Paper(threshold, full=on_stable == "full")
        assert apart(logits[b], oracle(key, zoo.alone(key, case, b), row, rule)) < 1e-5
        sides |= {cosine >= threshold for cosine in rule.cosines[1:]}
    assert sides == {False, True}
    assert apart(static[1], logits) < 1e-5


@pytest.mark.parametrize("key", FAMILIES)
def test_beams_are_stable_or_not_each_by_itself(key):
    """Without reordering what was noted the score would be of rows that never attended so."""
    if key == "internvl" and TRANSFORMERS < (5, 18):
        pytest.skip("transformers before 5.18 repeats the pictures of beams one by one, not sample by sample")
    model = reduced.model(key)
    case = zoo.case(key, "video", model)
    threshold = inside(key, case.inputs)
    how = {"num_beams": 4, "length_penalty": 0.0, "do_sample": False}
    with wrapped(key, model, method(threshold)):
        out = model.generate(
            **case.inputs,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            output_scores=True,
            return_dict_in_generate=True,
            **how,
        )
    row = out.sequences[0, case.inputs["input_ids"].shape[1] :]
    steps = oracle(key, case.inputs, row, Paper(threshold)).log_softmax(dim=-1)
    assert abs(float(steps.gather(1, row[:, None]).sum() - out.sequences_scores[0])) < 3e-5


def test_pictures_are_read_whole():
    model = reduced.model("qwen2_5_vl")
    inputs = zoo.inputs("qwen2_5_vl", "mixed", model)
    plain = written(model, inputs)
    with tr.wrapped(model, method(0.9)):
        assert torch.equal(written(model, inputs)[1], plain[1])
        model.generate(
            **inputs, max_new_tokens=2, do_sample=False, use_cache=False
        )  # nothing to choose, nothing to refuse
        assert not tr.report(model).steps_read.held


def test_the_temporal_part_goes_alone_and_so_does_the_other():
    model = reduced.model("qwen2_5_vl")
    inputs = zoo.inputs("qwen2_5_vl", "video", model)
    with tr.wrapped(model, DyCoke(keep=0.6)):
        model.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False)
        assert not tr.report(model).steps_read.held
        left = tr.report(model).tokens_kept[0][0]
    with tr.wrapped(model, DyCoke(keep=1.0, cache_keep=0.5, layer=1)):
        written(model, inputs)
        (n,) = tr.report(model).tokens_kept[0]
        assert left < n == tr.report(model).tokens_in[0][0]
        assert tr.report(model).steps_read.read == [n // 2] * (STEPS - 1)


def shown(method: DyCoke, row: list[float], notes: dict):
    tokens = VisualTokens(
        torch.empty(1, len(row), 0),
        Layout(1, len(row), medium="video"),
        stage="decode",
        layer=method.layer,
        signals={method.attended: torch.tensor([row])},
        notes=notes,
    )
    plan = method.reduce(tokens).check(tokens)
    return plan.source[0].tolist() if plan.valid is None else plan.source[0][plan.valid[0]].tolist(), dict(plan.notes)


@pytest.mark.parametrize(("on_stable", "second"), [("reuse", [0, 1]), ("full", [0, 1, 2, 3])])
def test_what_is_chosen_comes_back(on_stable, second):
    """Ties go to the first; a stable token is compared with the one before it, not with the one that chose."""
    own = DyCoke(cache_keep=0.5, threshold=0.9, on_stable=on_stable)
    read, notes = shown(own, [0.5, 0.2, 0.2, 0.1], {})
    assert read == [0, 1]
    read, notes = shown(own, [0.5, 0.1, 0.25, 0.1], notes)
    assert read == second
    read, notes = shown(own, [0.0, 0.0, 0.1, 0.8], notes)
    assert read == [2, 3]
    assert shown(own, [0.6, 0.1, 0.1, 0.1], notes)[0] == [0, 1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cache_keep": 0}, ["cache_keep=0", "(0, 1]"]),
        ({"cache_keep": 1.5}, ["cache_keep=1.5"]),
        ({"layer": 0}, ["layer=0", ">= 1"]),
        ({"threshold": 2}, ["threshold=2"]),
        ({"on_stable": "drop"}, ["on_stable='drop'", "'reuse', 'full'"]),
    ],
)
def test_what_is_out_of_range_is_said(given, words):
    with pytest.raises(ValueError, match=r"allowed|outside") as caught:
        DyCoke(**given)
    for word in words:
        assert word in str(caught.value)
