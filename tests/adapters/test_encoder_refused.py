"""Encoders and inputs in which no patch can be missing are refused with the reason."""

from __future__ import annotations

import pickle

import encoder_models
import pytest
import timm
import torch
from encoder_models import (
    small,
)
from transformers import AutoConfig, AutoModel

import tokenreduce as tr


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("sam_vision_model", "windows"),
        ("vitdet", "windows"),
        ("swin", "windows"),
        ("hiera", "between its stages"),
        ("beit", "relative position"),
        ("vit_mae", "at random"),
        ("dinov3_convnext", "convolutions"),
    ],
)
def test_encoders_without_a_place_to_merge_are_refused_with_the_reason(model_type, said):
    small_one = {
        "sam_vision_model": {"num_hidden_layers": 1, "global_attn_indexes": [0]},
        "swin": {"depths": [1, 1, 1, 1]},
    }
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **small_one.get(model_type, {})))
    with pytest.raises(ValueError, match=f"'{model_type}'.*not supported.*{said}.*Instead, "):
        tr.wrap(model, tr.ToMe(keep=0.5))
    assert not tr.is_wrapped(model)


def test_models_of_torchvision_without_a_place_to_merge_are_refused():
    models = pytest.importorskip("torchvision.models")
    for make in (models.swin_t, models.resnet18):
        with pytest.raises(ValueError, match=r"EncoderBlocks; allowed: VisionTransformer.*whole\s*grid"):
            tr.wrap(make(), tr.ToMe(keep=0.5))


@torch.no_grad()
def test_patches_that_the_model_drops_while_training_are_refused():
    open_clip = pytest.importorskip("open_clip")
    tower = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 4, "head_width": 12, "patch_dropout": 0.5}
    vocabulary = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=tower, text_cfg=vocabulary).train()
    dropping = small("vit_tiny_patch16_224", img_size=64, patch_drop_rate=0.5).train()
    for run in (lambda m: m.encode_image(torch.randn(2, 3, 32, 32)), lambda m: m(torch.randn(2, 3, 64, 64))):
        with tr.wrapped(model, tr.ToMe(keep=0.5)):
            with pytest.raises(ValueError, match=r"8 patches arrive.*of a grid of 4 x 4.*model.eval"):
                run(model)
            model.eval()
            run(model)
            assert tr.report(model).tokens_kept == [[8], [8]]
        model = dropping


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "samvit_base_patch16"])
def test_blocks_that_only_share_a_name_are_refused(name):
    model = timm.create_model(name, pretrained=False, depth=1, embed_dim=48, num_heads=4)
    with pytest.raises(ValueError, match="allowed: Block, EvaBlock"):
        tr.wrap(model, tr.ToMe(keep=0.5))


def test_a_block_that_checkpointing_runs_again_is_refused():
    model = encoder_models.transformers_model("vit").train()
    model.gradient_checkpointing_enable()
    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    with tr.wrapped(model, "tome", keep=0.5):
        out = model(pixels, output_hidden_states=False).last_hidden_state
        with pytest.raises(RuntimeError, match=r"vision block \d+ runs out of turn, as gradient checkpointing"):
            out.sum().backward()


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_a_wrapped_encoder_can_be_pickled(kind):
    model = encoder_models.transformers_model(kind).eval()
    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    with tr.wrapped(model, "tome", keep=0.5), torch.no_grad():
        again = pickle.loads(pickle.dumps(model))
        torch.testing.assert_close(again(pixels).last_hidden_state, model(pixels).last_hidden_state, atol=0, rtol=0)
        assert tr.is_wrapped(again)
