"""Contract 7: what cannot be honoured raises before anything is attached: argument, value, what is allowed, what to do."""

from __future__ import annotations

import pytest
import timm
import torch
from models import IMAGE_TOKEN, TRANSFORMERS, llava, prompt, text, vision
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

import tokenreduce as tr
from tokenreduce.eval import tiny_models
from tokenreduce.model_facts import ModelFacts
from tokenreduce.pipeline import Pipeline
from tokenreduce.registry import make


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
        (("qqq",), {}, ValueError, ["'qqq'", "fastervlm, fastv, "]),
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
        (("hiprune",), {"keep": None}, TypeError, ["keep=None", "keep=1.0"]),
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


WITHOUT_TOWER = ModelFacts(
    family="kin",
    stages=("projector", "llm"),
    tower_depth=0,
    feature_block=-1,
    has_cls=False,
    patches_per_token=4,
    decoder_depth=12,
)


@pytest.mark.parametrize(
    "method",
    [
        tr.HiPrune(),
        tr.HiPrune(object_layer=3),
        tr.FasterVLM(),
        tr.PruMerge(attention_block=2),
        tr.VTCCLS(start=0),
        tr.MustDrop(),
        tr.ToMe(),
        tr.ToMe(r=[3, 2]),
        tr.PiToMe(),
    ],
    ids=str,
)
def test_a_model_whose_tower_has_no_blocks_to_listen_to(method):
    with pytest.raises(ValueError, match=f"{method.name!r} listens .* of this kin model has none .* use a method that"):
        Pipeline([method], WITHOUT_TOWER)


@pytest.mark.parametrize("method", [tr.Uniform(), tr.DivPrune(), tr.PruneSID(), tr.FastV(), tr.CDPruner()], ids=str)
def test_methods_that_need_no_tower_run_on_a_model_without(method):
    assert Pipeline([method], WITHOUT_TOWER).steps


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


def test_generation_without_the_cache_that_a_method_shortens(model):
    inputs = prompt(model, [1])
    with tr.wrapped(model, "mustdrop", keep=6, window=2), torch.no_grad():
        with pytest.raises(ValueError, match=r"use_cache=False.*changes the cache.*trim_cache=False"):
            model.generate(**inputs, max_new_tokens=2, use_cache=False)
        assert torch.equal(model(**inputs, use_cache=False).logits, model(**inputs).logits)  # nothing is written here
    with tr.wrapped(model, "mustdrop", keep=6, window=2, trim_cache=False):
        written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False), written)


@pytest.mark.parametrize("key", ["gemma3", "aya_vision", "paligemma2"])
def test_layers_with_a_sliding_window_cannot_be_trimmed(key):
    model, settings = tiny_models.build(key), {"keep": 0.75, "window": 2}
    with pytest.raises(ValueError, match=r"stage 'cache'.* sliding windows.*trim_cache=False"):
        tr.wrap(model, "mustdrop", trim_cache=True, **settings)
    assert not tr.is_wrapped(model)
    with tr.wrapped(model, "mustdrop", **settings), torch.no_grad():
        model(**tiny_models.inputs(key, "single", model))
        assert any("no trimming of the cache" in said for said in tr.report(model).substitutes)


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_of_a_wrapped_model_says_what_to_do(model, strict):
    with (
        tr.wrapped(model, "hiprune", keep=4),
        pytest.raises(Exception, match=r"torch\.export of a wrapped vision-language model.*tr\.unwrap\(model\)"),
    ):
        torch.export.export(model, (), kwargs=prompt(model, [1]), strict=strict)


def test_a_wrapped_encoder_is_exported_as_it_runs():
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval()
    first, second = torch.randn(2, 1, 3, 64, 64)
    with tr.wrapped(encoder, "tome", keep=8), torch.no_grad():
        with pytest.raises(Exception, match="strict=False"):
            torch.export.export(encoder, (first,), strict=True)
        exported = torch.export.export(encoder, (first,), strict=False).module()
        torch.testing.assert_close(exported(second), encoder(second))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("aim", {"prune": "false"}),
        ("fastv", {"strict": "no"}),
        ("prunesid", {"forward_cls": 1}),
        ("mustdrop", {"trim_cache": 0}),
    ],
)
def test_words_are_not_truths(name, parameters):
    """As a command line may give them: the word "false" counts as true."""
    ((argument, value),) = parameters.items()
    with pytest.raises(TypeError, match=f"{argument}={value!r}; allowed: True, False"):
        make(name, **parameters)
