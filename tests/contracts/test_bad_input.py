"""Contract 7: what cannot be honoured raises before anything is attached: argument, value, what is allowed, what to do."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_TOKEN, TRANSFORMERS, llava, prompt, text, vision
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

import tokenreduce as tr


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.fixture(autouse=True)
def nothing_attached(model):
    yield
    assert not tr.is_wrapped(model)
    assert not any("tokenreduce" in type(h).__module__ for m in model.modules() for h in m._forward_pre_hooks.values())


@pytest.mark.parametrize(
    ("arguments", "parameters", "error", "words"),
    [
        (("hiprun",), {}, ValueError, ["'hiprun'", "hiprune", "fastv", "Did you mean"]),
        (("qqq",), {}, ValueError, ["'qqq'", "fastervlm, fastv, hiprune"]),
        ((), {}, TypeError, ["at least one method"]),
        ((7,), {}, TypeError, ["7", "tr.methods()"]),
        (("hiprune",), {"keep": 0}, ValueError, ["keep=0", ">= 1"]),
        (("hiprune",), {"keep": -3}, ValueError, ["keep=-3"]),
        (("hiprune",), {"keep": 0.0}, ValueError, ["keep=0", "(0, 1]"]),
        (("hiprune",), {"keep": 1.5}, ValueError, ["keep=1.5", "(0, 1]", "int"]),
        (("hiprune",), {"keep": 64.0}, ValueError, ["keep=64", "keep=64."]),
        (("hiprune",), {"keep": float("nan")}, ValueError, ["nan"]),
        (("hiprune",), {"keep": "half"}, TypeError, ["'half'", "str", "float in (0, 1]"]),
        (("hiprune",), {"keep": True}, TypeError, ["bool"]),
        (("hiprune",), {"keep": None}, TypeError, ["NoneType"]),
        (("hiprune",), {"keep": 17}, ValueError, ["keep=17", "16 visual tokens", "from 1 to 16"]),
        (("hiprune",), {"alpha": 2}, ValueError, ["alpha=2", "[0, 1]"]),
        (("hiprune",), {"object_layer": 9}, ValueError, ["object_layer=9", "[1, 3]"]),
        (("hiprune",), {"border": "wrap"}, ValueError, ["border='wrap'", "'clamp', 'drop'"]),
        (("hiprune",), {"positions": "new"}, ValueError, ["positions='new'", "'keep', 'renumber'"]),
        (("hiprune",), {"rate": 0.5}, TypeError, ["'rate'", "alpha"]),
        (("fastv",), {"layer": 0}, ValueError, ["layer=0", ">= 1"]),
        (("fastv",), {"layer": 5}, ValueError, ["layer=5", "1 to 4"]),
        (("fastv",), {"query": "first"}, ValueError, ["query='first'", "'last', 'all'"]),
        (("fastervlm",), {"score": "best"}, ValueError, ["score='best'"]),
        (("hiprune", "fastv"), {"keep": 0.5}, TypeError, ["ambiguous", "tr.FastV("]),
    ],
)
def test_wrap_teaches(model, arguments, parameters, error, words):
    with pytest.raises(error) as caught:
        tr.wrap(model, *arguments, **parameters)
    for word in words:
        assert word in str(caught.value)


def test_what_stands_in_for_cls_is_named_and_strict_refuses_it():
    siglip, clip = llava("siglip"), llava("clip")
    with pytest.raises(
        ValueError, match=r"strict=True would run .* attention received .* no \[CLS\] token; allowed: strict=False"
    ):
        tr.wrap(siglip, "fastervlm", keep=4, strict=True)
    assert not tr.is_wrapped(siglip)
    for model, words in (
        (siglip, ("fastervlm: attention received from all tokens in place of [CLS] attention",)),
        (clip, ()),
    ):
        with tr.wrapped(model, "fastervlm", keep=4), torch.no_grad():
            model(**prompt(model, [1]))
            said = tr.report(model)
        assert [clause.split(":  ")[0].rsplit(":", 1)[0] for clause in said.substitutes] == list(words)
        assert all(word in str(said) for word in words)
        assert said.as_dict()["substitutes"] == said.substitutes


def test_a_model_that_is_no_vlm():
    language = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in text().items() if k != "model_type"}))
    with pytest.raises(ValueError, match=r"type 'llama'.*supported model types: .*llava"):
        tr.wrap(language, "hiprune")
    with pytest.raises(TypeError, match=r"Linear.*supported model types: .*llava"):
        tr.wrap(torch.nn.Linear(2, 2), "hiprune")


def test_an_unsupported_tower_is_refused_with_the_reason():
    config = LlavaConfig(
        vision_config={**vision(), "model_type": "dinov2"}, text_config=text(), image_token_index=IMAGE_TOKEN
    )
    other = LlavaForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"vision tower 'dinov2'.*clip_vision_model"):
        tr.wrap(other, "hiprune")


def test_calls_that_cannot_be_honoured(model):
    inputs = prompt(model, [1])
    with tr.wrapped(model, "hiprune", keep=4), torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"])
        del inputs["pixel_values"]
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        place = (inputs["input_ids"] == IMAGE_TOKEN).unsqueeze(-1).expand_as(embeds)
        embeds = embeds.masked_scatter(place, torch.cat(list(features.pooler_output)))
    with tr.wrapped(model, "hiprune", keep=4), torch.no_grad():
        encoded = {"image": features}
        with pytest.raises(ValueError, match=r"16 placeholders .* encoded 0 images .*pixel_values"):
            model(**inputs, mm_encoder_outputs=encoded)
    with tr.wrapped(model, "uniform", keep=4), torch.no_grad():  # needs no signal, so features from elsewhere will do
        model(**inputs, mm_encoder_outputs=encoded)
        assert tr.report(model).tokens_kept == [[4]]


def test_features_handed_in_as_embeddings_are_not_passed_over_in_silence(model):
    embeds = model.get_input_embeddings()(prompt(model, [0])["input_ids"]).detach()
    with tr.wrapped(model, "uniform", keep=4), torch.no_grad(), pytest.warns(UserWarning, match="pixel_values"):
        model(inputs_embeds=embeds)


@pytest.mark.skipif(TRANSFORMERS < (5, 23), reason="before 5.23 chunked prefill does not handle images at all")
def test_an_image_cut_in_two_by_chunked_prefill(model):
    inputs = prompt(model, [1])
    with tr.wrapped(model, "hiprune", keep=4), pytest.raises(ValueError, match=r"one piece.*prefill_chunk_size"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=10)
