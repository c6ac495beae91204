"""Encoders by themselves: patches left out before the first block, against the blocks run on fewer rows."""

from __future__ import annotations

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import tokenreduce as tr


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **sizes)).eval()


def pictures(whole: bool) -> torch.Tensor:
    """Three of 4 x 5 patches: the first one, unless it stays ``whole``, and the others have flat regions."""
    torch.manual_seed(1)
    x = torch.randn(3, 3, 56, 70)
    x[1, :, :28], x[2, :, 42:] = 0.3, 0.1
    if not whole:
        x[0, :, :14] = 0.2
    return x


METHODS = {
    "uniform": lambda: tr.Uniform(keep=0.5, at="pixels"),
    "random": lambda: tr.Random(keep=7, at="pixels"),
    "pixelprune": lambda: tr.PixelPrune(),
}


@pytest.mark.parametrize("output_length", ["full", "reduced"])
@pytest.mark.parametrize("whole", [True, False], ids=["one enters whole", "none does"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_blocks_run_on_fewer_rows(tower, method, whole, output_length):
    x = pictures(whole)
    bare = tower(x).last_hidden_state
    with tr.wrapped(tower, METHODS[method](), output_length=output_length):
        out, report = tower(x).last_hidden_state, tr.report(tower)
        kept = [image.kept() for image in tr.trace(tower).images]
        stages = [stage.stage for image in tr.trace(tower).images for stage in image.stages]
    assert set(stages) <= {"pixels"}
    assert report.tokens_kept == [[len(own)] for own in kept]
    assert report.tokens_in == [[20]] * 3
    assert report.flops < report.flops_unreduced
    for b, own in enumerate(kept):
        rows = torch.cat([torch.zeros(1, dtype=torch.long), own + 1])
        hidden = tower.embeddings(x[b : b + 1])[:, rows]
        for layer in tower.encoder.layer:
            hidden = layer(hidden)
        mine = out[b, rows] if output_length == "full" else out[b, : len(rows)]
        torch.testing.assert_close(mine, tower.layernorm(hidden)[0], atol=1e-5, rtol=0)
    assert torch.equal(tower(x).last_hidden_state, bare)


@torch.no_grad()
def test_recorded_states_are_at_full_width_and_a_place_that_never_ran_repeats_the_one_before(tower):
    x = pictures(whole=False)[:1]
    with tr.wrapped(tower, METHODS["random"]()):
        out = tower(x, output_hidden_states=True)
        kept = set(tr.trace(tower).images[0].kept().tolist())
    assert {state.shape for state in out.hidden_states} == {(1, 21, 32)}
    for place in range(20):
        if place not in kept:
            assert torch.equal(out.last_hidden_state[0, place + 1], out.last_hidden_state[0, place])


def test_merging_inside_a_part_of_a_picture_is_refused(tower):
    with pytest.raises(
        ValueError, match=r"'tome' merges inside the vision tower, but method='uniform' leaves it only a part"
    ):
        tr.wrap(tower, tr.Uniform(at="pixels"), tr.ToMe())
    with pytest.raises(ValueError, match=r"layer=1 at stage 'pixels'.*allowed"):
        tr.wrap(tower, tr.PixelPrune(tower_layer=1))
