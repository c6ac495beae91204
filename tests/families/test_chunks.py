"""Decoder layers that attend within chunks: what the last query sees, and what cannot be told of the others."""

from __future__ import annotations

import pytest
import torch
from eager_maps import LAYER, maps, shown

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.signals import LastQueryAttention


@pytest.mark.skipif("llama4" not in zoo.FAMILIES, reason="the installed transformers has no Llama 4")
@pytest.mark.parametrize("chunk", [7, 16, 512])
@pytest.mark.parametrize("kind", ["single", "mixed", "right"])
def test_the_last_query_sees_its_chunk(kind, chunk):
    model = zoo.build("llama4", "eager", window=chunk)
    inputs = zoo.inputs("llama4", kind, model)
    heard = LAYER - 1
    found, trace = shown(model, inputs, (LastQueryAttention(heard),))
    (weights,) = maps(model, inputs, [decoder_of(model).layers[heard].self_attn])[0]
    mask = inputs["attention_mask"]
    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(dim=1)
    for image, own in zip(trace.images, found, strict=True):
        expected = weights[image.sample, :, last[image.sample]].mean(dim=0)[image.columns]
        torch.testing.assert_close(own[LastQueryAttention(heard)], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif("llama4" not in zoo.FAMILIES, reason="the installed transformers has no Llama 4")
def test_other_queries_are_refused():
    model = zoo.build("llama4", window=7)
    inputs = zoo.inputs("llama4", "single", model)
    with tr.wrapped(model, tr.FastV(layer=2, keep=0.5, query="all")), pytest.raises(ValueError, match="chunks of 7"):
        model(**inputs)
