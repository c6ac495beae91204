"""CDPruner beyond its vectors: relevance at its edges, tiles and frames, what the report says."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt

import tokenreduce as tr
from tokenreduce.kernels.greedy_selection import dpp_selection
from tokenreduce.layout import Layout
from tokenreduce.methods.cdpruner import picks, relevance
from tokenreduce.signals import Hidden, Text
from tokenreduce.tokens import Rows, VisualTokens


def test_relevance_is_rescaled_within_an_image():
    cosine = torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.2, 0.2], [0.4, 0.0, 0.1]])
    r = relevance(cosine, torch.tensor([True, True, False]))
    torch.testing.assert_close(r[0], torch.tensor([2.5e-6, 1 + 2.5e-6, 0.5 + 2.5e-6]))
    assert r[1:].tolist() == [[1.0] * 3] * 2  # a constant, and no text
    weighted = relevance(cosine, torch.tensor([True] * 3), theta=0.5)
    torch.testing.assert_close(weighted[0, 1], torch.tensor(0.5).exp(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("untouched", [True, False])
def test_every_tile_has_its_share_and_is_selected_by_itself(untouched):
    """Also where an earlier method left unequal numbers of each."""
    torch.manual_seed(0)
    layout = Layout(3, 8, views=(Layout(2, 2), Layout(4, 4), Layout(2, 2)))
    every = torch.arange(24)
    left = torch.stack([every, every] if untouched else [every[every != 1][:20], every[4:]])
    features, target = torch.randn(2, left.shape[1], 16), torch.randn(2, 3, 16)
    text = Rows(target, torch.tensor([[True, True, False], [True, True, True]]), torch.zeros(2, 3).long())
    method = tr.CDPruner(keep=12)
    shown = {Hidden(): features, Text("all", special=False): text}
    plan = method.reduce(VisualTokens(features, layout, source=left, signals=shown))
    for b in range(2):
        mean = (target[b, :2] if b == 0 else target[b]).mean(0)
        cosine = torch.cosine_similarity(features[b], mean[None])
        r = (cosine - cosine.min() + 1e-6) / (cosine.max() - cosine.min())
        view = torch.tensor([0] * 4 + [1] * 16 + [2] * 4)[left[b]]
        kept = []
        sizes = [int((view == v).sum()) for v in range(3)]
        for v, share in enumerate(
            {(4, 16, 4): [2, 8, 2], (3, 16, 1): [2, 10, 0], (0, 16, 4): [0, 10, 2]}[tuple(sizes)]
        ):
            own = (view == v).nonzero()[:, 0]
            if share:
                kept += own[dpp_selection(features[b : b + 1, own], r[None, own], share)[0]].tolist()
        assert plan.source[b].tolist() == sorted(kept)


def test_images_of_unlike_spread_are_picked_alike_alone():
    x, r = torch.randn(3, 12, 8), torch.rand(3, 12)
    view = torch.tensor([[0] * 6 + [1] * 6, [0] * 3 + [1] * 9, [1] * 6 + [0] * 6])
    together = picks(x, r, 5, view)
    for b in range(3):
        assert torch.equal(picks(x[b : b + 1], r[b : b + 1], 5, view[b : b + 1])[0], together[b])


def test_the_question_decides_wherever_it_stands():
    model = llava()
    inputs = prompt(model, [1])
    row = inputs["input_ids"][0]
    image, words = row[row == IMAGE_TOKEN], row[row != IMAGE_TOKEN]
    kept = {}
    with tr.wrapped(model, "cdpruner", keep=5), torch.no_grad():
        for place in ("before", "after"):
            for question in (20, 45):
                asked = torch.cat([words[:1], torch.full((3,), question)])
                ids = torch.cat([asked, image] if place == "before" else [words[:1], image, asked[1:]])
                model(**{**inputs, "input_ids": ids[None], "attention_mask": torch.ones(1, len(ids))})
                kept[place, question] = tr.trace(model).images[0].kept().tolist()
        assert "embeddings of the language model" in str(tr.report(model))
    assert kept["before", 20] == kept["after", 20] != kept["after", 45] == kept["before", 45]


def test_without_text_diversity_decides():
    model = llava()
    inputs = prompt(model, [1])
    inputs["input_ids"] = inputs["input_ids"][inputs["input_ids"] == IMAGE_TOKEN][None]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with tr.wrapped(model, "cdpruner", keep=5), torch.no_grad():
        model(**inputs)
        kept = tr.trace(model).images[0].kept()
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0][None]
    assert kept.tolist() == sorted(dpp_selection(features, torch.ones(1, features.shape[1]), 5)[0].tolist())


def test_wrong_parameters_teach():
    with pytest.raises(ValueError, match="text='question'; allowed: 'all', 'after', 'before'"):
        tr.CDPruner(text="question")
    with pytest.raises(ValueError, match="sign=0; allowed: None, 1, -1"):
        tr.CDPruner(sign=0)
    with pytest.raises(ValueError, match=r"theta=1\.0 is outside \[0, 1\)"):
        tr.CDPruner(theta=1.0)
    with pytest.raises(ValueError, match=r"theta='much' is outside \[0, 1\)"):
        tr.CDPruner(theta="much")
    with pytest.raises(ValueError, match=r"strict=True would run .* embeddings of the language model"):
        tr.wrap(llava(), "cdpruner", strict=True)
