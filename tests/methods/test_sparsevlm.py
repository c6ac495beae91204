"""SparseVLM beyond its vectors: whose raters rate what, clusters, averages, refusals."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from eager_maps import maps
from models import IMAGE_TOKEN, llava, prompt
from torch import nn

import tokenreduce as tr
from tokenreduce.methods.sparsevlm import SparseVLM
from tokenreduce.text_raters import PUBLISHED, average, clusters, lengths, raters, recycled, schedule, text_score
from tokenreduce.tokens import Rows


def test_raters_are_above_the_mean_of_what_is_there():
    score = torch.tensor([[0.1, 0.5, 0.4, 9.0], [0.25, 0.25, 0.25, 0.25]])
    valid = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert raters(score, valid).tolist() == [[False, True, True, False], [True] * 4]
    visual, text = torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    whole = Rows(text, torch.tensor([[True, True, True]]), torch.zeros(1, 3).long())
    more = Rows(torch.cat([text, 50 + text], dim=1), torch.tensor([[True] * 3 + [False] * 3]), torch.zeros(1, 6).long())
    torch.testing.assert_close(text_score(visual, more)[:, :3], text_score(visual, whole))
    assert text_score(visual, more)[0, 3:].tolist() == [0.0] * 3


def nearness(model: nn.Module, n: int, least: float) -> torch.Tensor:
    """(n, n) cosines of all-ones vectors rotated to two positions, from the frequencies."""
    decoder = model.get_decoder()
    place = torch.arange(n)
    distance = (place[:, None] - place).double()
    return torch.cos(distance[..., None] * decoder.rotary_emb.inv_freq.double()).mean(dim=-1).clamp_min(least).float()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("heads", [None, 1, 3])
def test_every_picture_is_rated_by_its_own_raters(side, heads):
    """Against maps of eager attention, with the rule written out: two pictures in one sample, one in the other."""
    model, eager = llava(), llava(attention="eager")
    inputs = prompt(model, [2, 1], side)
    more = {"recycle": False} if heads is None else {"version": 2, "heads": heads, "least": 0.3}
    with tr.wrapped(model, SparseVLM(layers=(1,), counts=(5,), **more)), torch.no_grad():
        model(**inputs)
        trace = tr.trace(model)
    (attention,) = maps(eager, inputs, [eager.model.language_model.layers[1].self_attn])[0]
    table = model.get_input_embeddings().weight.detach()
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    for image, visual in zip(trace.images, features, strict=True):
        ids, mask = inputs["input_ids"][image.sample], inputs["attention_mask"][image.sample]
        last = int(image.columns[-1])
        words = [c for c in range(last + 1, len(ids)) if mask[c] and ids[c] != IMAGE_TOKEN]
        share = (visual @ table[ids[words]].mT).softmax(dim=1).mean(dim=0)
        chosen = [c for c, m in zip(words, share) if m > share.mean()]
        paid = attention[image.sample]
        if heads is not None:
            paid = paid / nearness(model, len(ids), 0.3)
        paid = paid[:, chosen][:, :, image.columns]
        believed = paid.sum(dim=(1, 2)).topk(heads or len(paid)).indices
        score = paid[believed].mean(dim=(0, 1))
        assert 0 < len(chosen) < len(words)
        assert image.kept(2).tolist() == sorted(score.topk(5).indices.tolist())


def test_what_is_recycled_is_the_mean_of_its_cluster():
    torch.manual_seed(1)
    x, score = torch.randn(2, 60, 6), torch.rand(2, 60)
    best, count = recycled(60 - 12)
    for order in ("raster", "reference"):
        plan = SparseVLM(output_order=order).cut(x, score, 12)
        rows = plan.carry(x)
        for b in range(2):
            ranked = score[b].sort(descending=True).indices.tolist()
            kept, again = sorted(ranked[:12]), sorted(ranked[12 : 12 + best])
            centre, place = clusters(x[b : b + 1, again], count)
            means = {again[int(c)]: x[b, again][place[0] == i].mean(0) for i, c in enumerate(centre[0])}
            sources = kept + [again[int(c)] for c in centre[0]]
            sources = sorted(sources) if order == "raster" else sources
            assert plan.source[b].tolist() == sources
            for row, source in zip(rows[b], sources):
                torch.testing.assert_close(row, means.get(source, x[b, source]))


@pytest.mark.parametrize("runs", [(2, 4, 9, 17), (0, 1, 1, 3), (1, 4)])
def test_averages_are_met(runs):
    for n in (12, 36, 577):
        for goal in (0.3 * n, 0.5 * n, 0.7 * n):
            counts = schedule(n, goal, runs, recycle=True)
            assert abs(average(n, counts, runs, recycle=True) - Fraction(goal)) <= 0.5
            assert list(counts) == sorted(counts, reverse=True)


def test_published_counts():
    assert lengths(576, PUBLISHED[192], recycle=True) == [309, 204, 113]
    assert SparseVLM(keep=64).kept(576, (2, 4, 9, 17)) == PUBLISHED[64]


def test_wrong_parameters_teach():
    with pytest.raises(ValueError, match="raters='before'; allowed: 'after', 'all'"):
        SparseVLM(raters="before")
    with pytest.raises(ValueError, match="version=3; allowed: 1, 2"):
        SparseVLM(version=3)
    model = llava()
    with (
        tr.wrapped(model, SparseVLM(layers=(1,), counts=(5,), version=2, heads=99)),
        pytest.raises(ValueError, match="heads=99; allowed: 1 to 4, the heads of this attention"),
    ):
        model(**prompt(model, [1]))
    with pytest.raises(ValueError, match=r"counts=\(5, 3\); allowed: 3 numbers, one for each of layers=\(0, 1, 2\)"):
        tr.wrap(llava(), SparseVLM(counts=(5, 3)))
    with pytest.raises(
        ValueError, match=r"keep=2 of 16 tokens cannot be reached: all of them pass the first 2 of 5 layers"
    ):
        tr.wrap(llava(), SparseVLM(keep=2, layers=(2,)))
    with pytest.raises(ValueError, match=r"layers=\(4,\) of a language model of 5 layers; allowed: 0 to 3"):
        tr.wrap(llava(), SparseVLM(layers=(4,)))
