"""Methods that act in every block of an encoder: what is left by ``keep``, or by a schedule, whatever the method."""

from __future__ import annotations

import dataclasses

import models
import pytest
import timm
import torch
from standins import FACTS, random

import tokenreduce as tr

TOWERS = {
    "tome": ({"r": 0}, {}, {"init_values": 0.5}),
    "tome and registers": ({"r": 0}, {}, {"init_values": 0.5, "reg_tokens": 4}),
    **{f"pitome {preset}": ({"rho": 1.0}, {"preset": preset}, {}) for preset in ("keys", "llava", "deit")},
    "evit": ({"keep_rate": 1.0}, {"keep_fused": False}, {}),
    "gtp": ({"num_prop": 0}, {}, {}),
    "expediting": ({"grid": (8, 8)}, {}, {}),
    "dymu": ({"calibration": [1.0, 1.0, 1.0]}, {}, {}),
}


@pytest.mark.parametrize("case", TOWERS)
def test_a_wrapped_vit(case) -> None:
    nothing, parameters, more = TOWERS[case]
    method, images = case.split()[0], random(2, 3, 32, 32)
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5, **more
    ).eval()
    with torch.no_grad():
        bare = model(images)
        with tr.wrapped(model, method, **nothing):
            assert torch.equal(model(images), bare)
        with tr.wrapped(model, method, keep=11, **parameters):
            merged = model(images)
            assert tr.report(model).tokens_kept == [[11], [11]]
            for b in range(2):
                torch.testing.assert_close(model(images[b : b + 1])[0], merged[b], rtol=1e-4, atol=1e-5)
        assert torch.equal(model(images), bare)
    assert not torch.allclose(merged, bare, atol=1e-4)


@pytest.mark.parametrize("order", ["raster", "reference"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("method", ["tome", "pitome", "evit", "gtp", "expediting", "dymu"])
def test_a_wrapped_llava(method, tower, order) -> None:
    model = models.llava(tower, grid=6)
    inputs = models.prompt(model, [1, 2], pad="left")
    with tr.wrapped(model, method, keep=7, output_order=order), torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
        assert [image.reached(0).source.numel() for image in tr.trace(model).images] == [7, 7, 7]


@pytest.mark.parametrize("method", [tr.ToMe, tr.PiToMe])
def test_what_a_tower_cannot_do_is_refused_when_planning(method) -> None:
    with pytest.raises(ValueError, match=r"r=\[1, .*has 25 entries for the 24 blocks"):
        method(r=[1] * 25).plan(FACTS)
    with pytest.raises(ValueError, match=r"keep=17 of 576 patches: .* 5 blocks leave at least 18"):
        method(keep=17).plan(dataclasses.replace(FACTS, feature_block=4))


@pytest.mark.parametrize("method", [tr.ToMe, tr.PiToMe])
def test_a_share_is_spread_over_the_blocks_once_the_patches_are_known(method) -> None:
    unknown = dataclasses.replace(FACTS, tower_grid=None)
    assert [step.amount for step in method(keep=0.5).plan(unknown)] == [None] * 23
    assert sum(step.amount for step in method(keep=0.5).plan(dataclasses.replace(FACTS, tower_grid=(16, 32)))) == 256
    assert method(keep=577).plan(FACTS) == ()  # as many as there are
