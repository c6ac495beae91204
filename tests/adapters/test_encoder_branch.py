"""Rows that leave a merged block: directly, where the MLP's branch joins the stream as it is, or by way of full width."""

from __future__ import annotations

import pytest
import torch
from encoder_models import TIMM, TOLERANCE, TRANSFORMERS, timm_model, transformers_model
from torch import Tensor, nn

import tokenreduce as tr

TOWERS = [*((timm_model, name) for name in TIMM), *((transformers_model, name) for name in TRANSFORMERS)]


def features(model: nn.Module, pixels: Tensor) -> Tensor:
    out = model(pixels)
    return out if isinstance(out, Tensor) else out.last_hidden_state


def pixels_for(model: nn.Module) -> Tensor:
    side = model.patch_embed.img_size[0] if hasattr(model, "patch_embed") else 32
    return torch.randn(2, 3, side, side)


@pytest.mark.parametrize(("build", "name"), TOWERS)
def test_directly_and_by_way_of_full_width_are_the_same(build, name):
    model = build(name)
    pixels = pixels_for(model)
    with tr.wrapped(model, tr.ToMe(keep=0.5)):
        with torch.no_grad():
            first, second = features(model, pixels), features(model, pixels)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, features(model, pixels), atol=TOLERANCE, rtol=TOLERANCE)


class Halved(nn.Module):
    """In front of a block of CLIP: what its MLP gives counts half, and no module of the block shows it."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        attended, _ = self.self_attn(self.layer_norm1(x), *args, **kwargs)
        x = x + attended
        return x + 0.5 * self.mlp(self.layer_norm2(x))


def test_a_branch_that_is_scaled_by_what_no_module_shows():
    model = transformers_model("clip")
    pixels = pixels_for(model)
    for layer in model.encoder.layers if hasattr(model, "encoder") else model.vision_model.encoder.layers:
        layer.__class__ = type("HalvedLayer", (Halved, type(layer)), {})
    with tr.wrapped(model, tr.ToMe(keep=0.5)):
        exact = features(model, pixels)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(features(model, pixels), exact, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_scale_that_is_trained_after_the_first_pass():
    """A weight of the block itself, one at first, is not taken for none."""
    model = transformers_model("internvl")
    pixels = pixels_for(model)
    scales = [layer.lambda_2 for layer in model.encoder.layer]
    for scale in scales:
        nn.init.ones_(scale)
    with tr.wrapped(model, tr.ToMe(keep=0.5)):
        with torch.no_grad():
            features(model, pixels)
        for scale in scales:
            nn.init.constant_(scale, 0.3)
        with torch.no_grad():
            after = features(model, pixels)
        torch.testing.assert_close(after, features(model, pixels), atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_while_training_rows_go_by_way_of_full_width():
    """Paths that are dropped at random are dropped for what the MLP gives, not for a zero in its place."""
    model = transformers_model("dinov2")
    pixels = pixels_for(model)
    layers = [module for module in model.modules() if hasattr(module, "layer_scale2")]
    for layer in layers:
        layer.drop_path = nn.Dropout(1.0).eval()  # drops all of it
    with tr.wrapped(model, tr.ToMe(keep=0.5)):
        features(model, pixels)
        trained = features(model.train(), pixels)
        for layer in layers:
            nn.init.zeros_(layer.layer_scale1.lambda1)
            nn.init.zeros_(layer.layer_scale2.lambda1)
        torch.testing.assert_close(trained, features(model.eval(), pixels), atol=TOLERANCE, rtol=TOLERANCE)
