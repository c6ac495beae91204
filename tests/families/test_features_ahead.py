"""Every family: pictures that a program encodes by itself are reduced in a later prompt as those of a call alone."""

from __future__ import annotations

import inspect

import pytest
import reduced
import torch
from models import TRANSFORMERS

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo

METHODS = [tr.HiPrune(keep=0.5), tr.FastV(layer=2, keep=0.5)]
#: positions of their pictures come from input_ids, and features of later layers do not fit into embeddings
QWEN = [key for key in reduced.FAMILIES if key.startswith("qwen")]
CASES = [(key, kind) for key in reduced.FAMILIES for kind in ("mixed", "videos") if kind in zoo.kinds(key)]
ENCODERS = {"image": "get_image_features", "video": "get_video_features"}


def encoded(model, inputs):
    """What each encoding method returns for the pictures of ``inputs``, and what is left of these."""
    rest, found = dict(inputs), {}
    for medium, name in ENCODERS.items():
        method = getattr(model.model, name, None)
        taken = set(inspect.signature(method).parameters) - {"input_ids", "attention_mask"} if method else set()
        own = {k: v for k, v in inputs.items() if k in taken or (k == "pixel_attention_mask" and medium == "image")}
        if any(k.startswith("pixel_values") for k in own):
            found[medium] = method(**own)
            rest = {k: v for k, v in rest.items() if k not in own or "grid_thw" in k}
    return found, rest


def embedded(model, inputs, found):
    """Embeddings of the prompt with the features in their places."""
    ids = inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    for medium, token in family_of(model).placeholder_ids().items():
        if medium in found:
            features = found[medium].pooler_output
            pieces = [features] if isinstance(features, torch.Tensor) else features
            rows = torch.cat([piece.flatten(0, -2) for piece in pieces])
            embeds = embeds.masked_scatter((ids == token)[..., None], rows)
    return embeds


@pytest.mark.skipif(TRANSFORMERS < (5, 18), reason="models take encoder outputs from transformers 5.18 on")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize(("key", "kind"), CASES)
def test_encoder_outputs_handed_to_a_later_call(key, kind, method):
    model = reduced.model(key)
    inputs, other = zoo.inputs(key, kind, model), zoo.inputs(key, kind, model, seed=7)
    with tr.wrapped(model, method), torch.no_grad():
        expected, kept = model(**inputs).logits, tr.trace(model).kept
        found, rest = encoded(model, inputs)
        encoded(model, other)  # nobody's
        logits = model(**rest, mm_encoder_outputs=found).logits
        assert all(map(torch.equal, tr.trace(model).kept, kept))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize(("key", "kind"), [case for case in CASES if case[0] not in QWEN])
def test_features_in_the_embeddings_of_a_later_call(key, kind, method):
    model = reduced.model(key)
    inputs, other = zoo.inputs(key, kind, model), zoo.inputs(key, kind, model, seed=7)
    with tr.wrapped(model, method), torch.no_grad():
        expected, kept = model(**inputs).logits, tr.trace(model).kept
        found, rest = encoded(model, inputs)
        encoded(model, other)  # nobody's
        embeds = embedded(model, inputs, found)
        del rest["input_ids"]
        logits = model(**rest, inputs_embeds=embeds).logits
        assert all(map(torch.equal, tr.trace(model).kept, kept))
    assert torch.equal(logits, expected)
