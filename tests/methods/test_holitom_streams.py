"""HoliTom as a stream, in a model, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from holitom_videos import CLOSE, footage, planned, scores, shown
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llava, prompt
from torch import Tensor

import tokenreduce as tr
from tokenreduce.kernels.temporal_segmentation import temporal_segmentation
from tokenreduce.layout import Layout
from tokenreduce.method import Step
from tokenreduce.methods.holitom import HoliTom
from tokenreduce.model_facts import ModelFacts
from tokenreduce.segment_stream import Segment
from tokenreduce.signals import AttentionReceived, LastQueryAttention
from tokenreduce.tokens import STAGES

FACTS = ModelFacts(family="stand-in", stages=STAGES, tower_depth=24, feature_block=22, has_cls=False, decoder_depth=28)


def joined(segments: list[Segment]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.cat([getattr(s, name) for s in segments]) for name in ("features", "frame", "cell", "size"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    frames=st.integers(2, 20),
    n=st.integers(2, 8),
    change=st.sampled_from([0.0, 0.05, 0.2, 0.6]),
    keep=st.sampled_from([0.1, 0.3, 0.7]),
    exact=st.booleans(),
    order=st.sampled_from(["raster", "reference"]),
    seed=st.integers(0, 999),
)
def test_a_stream_equals_the_whole_video(frames, n, change, keep, exact, order, seed) -> None:
    method = HoliTom(keep=keep, exact=exact, ratio="segment", output_order=order)
    x = footage(frames, n, change=change, seed=seed)
    score = scores(x, seed)
    tokens, plan = planned(method, x, score)
    stream = method.stream(limit=1000)
    segments = [s for t in range(frames) for s in stream.push(x[0, t], score[0, t])] + stream.flush()
    features, frame, cell, size = joined(segments)
    assert torch.equal(frame * n + cell, plan.source[0])
    torch.testing.assert_close(features, plan.carry(tokens.features)[0], **CLOSE)
    k = plan.num_kept
    assert size.tolist() == torch.bincount(plan.assign[0][plan.assign[0] >= 0], minlength=k).tolist()
    still = torch.nn.functional.cosine_similarity(x[0, :-1], x[0, 1:], dim=-1) > method.tau
    assert [(s.start, s.stop) for s in segments] == temporal_segmentation(still)[0]
    assert stream.flush() == []


@settings(max_examples=30, deadline=None, derandomize=True)
@given(limit=st.integers(1, 6), change=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 99))
def test_a_stream_never_holds_more_than_its_limit(limit, change, seed) -> None:
    x = footage(30, 5, change=change, seed=seed)[0]
    stream, found = HoliTom(keep=0.4).stream(limit=limit), []
    for frame, score in zip(x, scores(x[None])[0]):
        found += stream.push(frame, score)
        assert len(stream._held) < limit
    found += stream.flush()
    assert [s.start for s in found] == [0, *(s.stop for s in found[:-1])]
    assert found[-1].stop == 30
    for s in found:
        assert ((s.frame >= s.start) & (s.frame < s.stop)).all()
        assert len(s.features) <= max(1, round(0.4 * 5 * (s.stop - s.start)))


def test_a_stream_hands_out_at_a_cut() -> None:
    stream = HoliTom(keep=0.5).stream()
    scene, other = torch.eye(6)[:3], torch.eye(6)[3:]
    score = torch.rand(3)
    assert [stream.push(scene, score) for _ in range(3)] == [[], [], []]
    (segment,) = stream.push(other, score)
    assert (segment.start, segment.stop) == (0, 3)
    assert segment.frame.tolist() == [0, 0, 0]  # everything stands still: one copy, within the budget of 4
    torch.testing.assert_close(segment.features, scene)
    with pytest.raises(ValueError, match=r"frame of shape \(2, 6\) after frames of shape \(3, 6\)"):
        stream.push(other[:2], score)


def test_a_llava_that_takes_frames_as_images() -> None:
    model = llava(grid=4)
    inputs = prompt(model, [3, 2], "left")
    with tr.wrapped(model, HoliTom(keep=0.3, tau=0.0, layer=3), images_as_video=True), torch.no_grad():
        model(**inputs)
        report = tr.report(model)
        cached = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        again = model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
    assert report.tokens_in == [[48], [32]]
    assert report.tokens_at_layer == [[14, 10]] * 3 + [[7, 5]] * 2
    assert torch.equal(cached, again)


def test_images_of_a_prompt_stay_what_they_are() -> None:
    model = llava()
    inputs = prompt(model, [2])
    with torch.no_grad():
        expected = model(**inputs).logits
        with tr.wrapped(model, HoliTom(keep=0.1)):
            assert torch.equal(model(**inputs).logits, expected)


def test_it_asks_for_what_it_describes() -> None:
    outer = Step("projector", needs=(AttentionReceived(22),))
    assert HoliTom().plan(FACTS) == (outer, Step("llm", layer=18, needs=(LastQueryAttention(17),)))
    assert HoliTom(layer=5).plan(FACTS)[1] == Step("llm", layer=5, needs=(LastQueryAttention(4),))
    assert HoliTom(inner_keep=1.0).plan(FACTS) == (outer,)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tau": 1.5}, ["tau=1.5", "[-1, 1]"]),
        ({"beta": -0.1}, ["beta=-0.1", "[0, 1]"]),
        ({"neighbours": 0}, ["neighbours=0", "an int >= 1", "7"]),
        ({"max_window": 2.5}, ["max_window=2.5", "an int >= 1", "1024"]),
        ({"layer": 0}, ["layer=0", "an int >= 1", "18"]),
        ({"inner_keep": 0.0}, ["inner_keep=0.0", "(0, 1]", "1.0 leaves the inner step out"]),
        ({"ratio": "frame"}, ["ratio='frame'", "'video'", "'segment'"]),
        ({"output_order": "time"}, ["output_order='time'", "'raster'", "'reference'"]),
        ({"ratio": "segment", "keep": 64}, ["keep=64", "a fraction"]),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"allowed|outside|fraction") as caught:
        HoliTom(**parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_requests_that_cannot_be_honoured() -> None:
    with pytest.raises(ValueError, match=r"layer=28 is outside \[1, 27\].*inner_keep=1.0"):
        HoliTom(layer=28).plan(FACTS)
    with pytest.raises(ValueError, match="stream of unknown length"):
        HoliTom(keep=64).stream()
    with pytest.raises(ValueError, match="limit=0 frames"):
        HoliTom().stream(limit=0)
    x = footage(3, 4)
    tokens = shown(x, scores(x), layout=Layout(1, 5, frames=3))
    with pytest.raises(ValueError, match=r"12 of 15 tokens of a video of 3 frames.*allowed: first among"):
        HoliTom().reduce(tokens)
    uneven = shown(x, scores(x), layout=Layout(2, 3, frames=3, cells=(0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 16)))
    with pytest.raises(ValueError, match="frames differ in shape"):
        HoliTom().reduce(uneven)
