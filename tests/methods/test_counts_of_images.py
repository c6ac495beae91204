"""HiPrune++ and PruneSID's budget per image: how many tokens, and which."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt

import tokenreduce as tr
from tokenreduce.principal_groups import shares_by_spread, spread


def test_the_closest_to_the_text_are_added_behind_a_full_budget():
    model = llava()
    inputs = prompt(model, [2, 1], "left")
    found = []
    for more in ({}, {"variant": "plusplus", "beta": 0.4}):
        with tr.wrapped(model, tr.HiPrune(keep=5, **more)), torch.no_grad():
            model(**inputs)
            found.append([image.kept().tolist() for image in tr.trace(model).images])
            samples = [image.sample for image in tr.trace(model).images]
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    table = model.get_input_embeddings().weight.detach()
    for x, sample, base, both in zip(features, samples, *found, strict=True):
        ids, real = inputs["input_ids"][sample], inputs["attention_mask"][sample].bool()
        text = table[ids[real & (ids != IMAGE_TOKEN)]].mean(dim=0)
        cosine = torch.cosine_similarity(x, text[None])
        cosine[base] = -torch.inf
        assert both == sorted(base + cosine.topk(2).indices.tolist())


def test_nothing_is_added_to_all():
    model = llava()
    with tr.wrapped(model, tr.HiPrune(keep=15, variant="plusplus", beta=0.5)), torch.no_grad():
        model(**prompt(model, [1]))
        assert len(tr.trace(model).images[0].kept()) == 16


def test_spread_is_one_less_the_mean_cosine_of_pairs():
    x = torch.randn(2, 9, 5)
    x[1] = 1 + 0.1 * x[1]
    for row, phi in zip(x, spread(x)):
        pairs = [float(torch.cosine_similarity(row[i], row[j], dim=0)) for i in range(9) for j in range(i)]
        assert float(phi) == pytest.approx(1 - sum(pairs) / len(pairs), abs=1e-6)
    assert shares_by_spread(torch.tensor([0.1, 0.6, 0.9, 1.9]), 8, 12, 0.6).tolist() == [4, 8, 12, 12]


@pytest.mark.parametrize("order", ["raster", "reference"])
def test_a_picture_of_more_kinds_keeps_more_and_what_it_keeps_alone(order):
    model = llava()
    inputs = prompt(model, [1, 1], "left")
    pixels = inputs["pixel_values"]
    pixels[1] = pixels[1, :, :1, :1] + 0.05 * pixels[1]
    with tr.wrapped(model, tr.PruneSID(keep=6, dynamic=0.5, output_order=order)), torch.no_grad():
        model(**inputs)
        kept = [image.kept().tolist() for image in tr.trace(model).images]
    assert 3 <= len(kept[1]) < len(kept[0]) <= 12
    for row, own in enumerate(kept):
        real = inputs["attention_mask"][row].bool()
        alone = {"input_ids": inputs["input_ids"][row][real][None], "pixel_values": pixels[row][None]}
        with tr.wrapped(model, tr.PruneSID(keep=len(own), output_order=order)), torch.no_grad():
            model(**alone)
            assert tr.trace(model).images[0].kept().tolist() == own


def test_wrong_parameters_teach():
    with pytest.raises(ValueError, match=r"variant='plus'; allowed: None, 'plusplus'"):
        tr.HiPrune(variant="plus")
    with pytest.raises(ValueError, match="allowed: parity='paper'"):
        tr.HiPrune(variant="plusplus", parity="release")
    with pytest.raises(ValueError, match=r"beta=2 is outside \[0, 1\]"):
        tr.HiPrune(beta=2)
    with pytest.raises(ValueError, match="dynamic=0 is outside"):
        tr.PruneSID(dynamic=0)
    with pytest.raises(ValueError, match=r"dynamic=0\.5 with forward_cls=True; allowed: one of the two"):
        tr.PruneSID(dynamic=0.5, forward_cls=True)
