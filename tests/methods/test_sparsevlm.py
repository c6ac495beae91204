"""SparseVLM beyond its vectors: whose raters rate what, clusters, averages, refusals."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from eager_maps import maps
from models import IMAGE_TOKEN, llava, prompt
from standins import FACTS
from torch import nn

import tokenreduce as tr
from tokenreduce.methods.sparsevlm import SparseVLM
from tokenreduce.text_raters import (
    PUBLISHED,
    average,
    by_rank,
    clusters,
    lengths,
    raters,
    recycled,
    schedule,
    text_score,
)
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
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    for image, visual in zip(trace.images, features, strict=True):
        chosen = rated(model, inputs, image, visual)
        paid = attention[image.sample]
        if heads is not None:
            paid = paid / nearness(model, len(paid[0]), 0.3)
        paid = paid[:, chosen][:, :, image.columns]
        believed = paid.sum(dim=(1, 2)).topk(heads or len(paid)).indices
        score = paid[believed].mean(dim=(0, 1))
        assert 0 < len(chosen) < inputs["input_ids"].shape[1] - int(image.columns[-1]) - 1
        assert image.kept(2).tolist() == sorted(score.topk(5).indices.tolist())


def rated(model: nn.Module, inputs: dict, image: object, visual: torch.Tensor) -> list[int]:
    """Columns of the words that rate ``image`` of features ``visual`` (N, D)."""
    table = model.get_input_embeddings().weight.detach()
    ids, mask = inputs["input_ids"][image.sample], inputs["attention_mask"][image.sample]
    words = [c for c in range(int(image.columns[-1]) + 1, len(ids)) if mask[c] and ids[c] != IMAGE_TOKEN]
    share = (visual @ table[ids[words]].mT).softmax(dim=1).mean(dim=0)
    return [c for c, m in zip(words, share) if m > share.mean()]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("recycle", [False, True])
def test_every_picture_keeps_what_the_rank_of_its_attention_says(side, recycle):
    model, eager = llava(), llava(attention="eager")
    inputs = prompt(model, [2, 1], side)
    method = SparseVLM(keep="auto", rank=(1.8, 1), layers=(1,), recycle=recycle)
    with tr.wrapped(model, method), torch.no_grad():
        model(**inputs)
        trace = tr.trace(model)
    (attention,) = maps(eager, inputs, [eager.model.language_model.layers[1].self_attn])[0]
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    counts = set()
    for image, visual in zip(trace.images, features, strict=True):
        paid = attention[image.sample].mean(dim=0)[rated(model, inputs, image, visual)][:, image.columns]
        k = int(1.8 * int(torch.linalg.matrix_rank(paid)) + 1)
        counts.add(k)
        best = sorted(paid.mean(dim=0).topk(k).indices.tolist())
        if recycle:
            assert len(image.kept(2)) == k + recycled(16 - k)[1]
        else:
            assert image.kept(2).tolist() == best
    assert len(counts) > 1, "pictures of one call differ"


def test_rank_counts_in_a_batch_as_alone_and_within_bounds():
    model = llava()
    inputs = prompt(model, [1, 0, 1], "left")
    with tr.wrapped(model, SparseVLM(keep="auto:3-9", rank=(1.5, 2), layers=(1, 2))), torch.no_grad():
        together = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        kept = tr.trace(model).images
        for row, image in ((0, 0), (2, 1)):
            real = inputs["attention_mask"][row].bool()
            alone = {
                "input_ids": inputs["input_ids"][row][real][None],
                "pixel_values": inputs["pixel_values"][image][None],
            }
            one = model.generate(**alone, max_new_tokens=4, do_sample=False)
            assert one[0, -4:].tolist() == together[row, -4:].tolist()
            assert tr.trace(model).images[0].kept(4).tolist() == kept[image].kept(4).tolist()
    for auto, k in (("auto:-4", 4), ("auto:9-", 9)):
        with tr.wrapped(model, SparseVLM(keep=auto, rank=(1.0, {4: 20, 9: 0}[k]), layers=(1,), recycle=False)):
            model(**inputs)
            assert [len(image.kept(2)) for image in tr.trace(model).images] == [k, k]


def test_counts_of_ranks():
    rank = torch.tensor([0, 8, 30, 45, 24])
    assert by_rank(rank, 45, (1.5, 0), 1, 576).tolist() == [1, 12, 44, 45, 36]
    assert by_rank(rank, 45, (1.5, 0), 10, 20).tolist() == [10, 12, 20, 45, 20]
    assert [step.layer for step in SparseVLM(keep="auto").plan(FACTS)[1:]] == [3, 7, 16, 20]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": (13.5, 0)}, r"rank=\(13.5, 0\) says how many.*allowed: with keep='auto'"),
        ({"keep": "auto", "rank": (0, 1)}, r"rank=\(0, 1\); allowed: a scale > 0 and a bias"),
        ({"keep": "auto", "rank": 13.5}, r"rank=13.5; allowed: a scale > 0 and a bias"),
        ({"keep": "auto", "version": 2}, "allowed: counts=None and version=1"),
        ({"keep": "auto", "counts": (5, 3, 1)}, "allowed: counts=None and version=1"),
    ],
)
def test_the_rule_by_rank_teaches(change, words):
    with pytest.raises(ValueError, match=words):
        SparseVLM(**change)


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
    with pytest.raises(ValueError, match="counts=5; allowed: ints >= 1"):
        SparseVLM(counts=5)
    with pytest.raises(ValueError, match="version=3; allowed: 1, 2"):
        SparseVLM(version=3)
    with pytest.raises(ValueError, match="heads=99; allowed: 1 to 4, the heads of this attention"):
        tr.wrap(llava(), SparseVLM(layers=(1,), counts=(5,), version=2, heads=99))
    with pytest.raises(ValueError, match=r"counts=\(5, 3\); allowed: 3 numbers, one for each of layers=\(0, 1, 2\)"):
        tr.wrap(llava(), SparseVLM(counts=(5, 3)))
    with pytest.raises(
        ValueError, match=r"keep=2 of 16 tokens cannot be reached: all of them pass the first 2 of 5 layers"
    ):
        tr.wrap(llava(), SparseVLM(keep=2, layers=(2,)))
    with pytest.raises(ValueError, match=r"layers=\(4,\) of a language model of 5 layers; allowed: 0 to 3"):
        tr.wrap(llava(), SparseVLM(layers=(4,)))
