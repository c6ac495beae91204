"""Types that share a class with another: a classifier around Gemma 3, and configurations of GLM-4.6V and GOT-OCR 2."""

from __future__ import annotations

import pytest
import reduced
import torch
import transformers

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

YES, NO = 30, 31


pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def shield():
    given = {name: x for name, x in zoo.FAMILIES["gemma3"].config().to_dict().items() if name != "model_type"}
    config = transformers.ShieldGemma2Config(**given)
    config.yes_token_index, config.no_token_index = YES, NO
    model = transformers.ShieldGemma2ForImageClassification(config).eval()
    zoo.fill(model.model, 0)
    return model


@pytest.mark.parametrize("method", [tr.HiPrune(keep=0.5), tr.FastV(keep=0.5, layer=2)], ids=lambda method: method.name)
def test_shieldgemma_says_of_fewer_tokens_what_the_gemma_inside_says(shield, method):
    inputs = zoo.inputs("gemma3", "mixed", reduced.model("gemma3"))
    bare = shield(**inputs)
    inside, _ = reduced.forward(shield.model, inputs, method)
    outside, trace = reduced.forward(shield, inputs, method)
    torch.testing.assert_close(outside.logits, inside.logits[:, -1, [YES, NO]], atol=0, rtol=0)
    assert [len(own) for own in (trace.kept_at or {0: trace.kept}).popitem()[1]] == [8, 16, 0]
    assert (outside.logits - bare.logits)[:2].abs().max() > 0.1
    assert not tr.is_wrapped(shield)
    assert torch.equal(shield(**inputs).logits, bare.logits)


def test_a_full_budget_changes_nothing_of_shieldgemma(shield):
    inputs = zoo.inputs("gemma3", "mixed", reduced.model("gemma3"))
    with torch.no_grad():
        bare = shield(**inputs).logits
        with tr.wrapped(shield, "hiprune", keep=1.0):
            assert torch.equal(shield(**inputs).logits, bare)


@pytest.mark.parametrize(("key", "kind"), [("glm46v", "GlmgaConfig"), ("got_ocr2", "PPChart2TableConfig")])
def test_another_configuration_of_the_same_class(key, kind):
    like = reduced.model(key)
    given = {name: x for name, x in like.config.to_dict().items() if name != "model_type"}
    given["vision_config"].pop("model_type") if key == "got_ocr2" else None
    config = getattr(transformers, kind)(**given)
    model = type(like)._from_config(config, attn_implementation=like.config._attn_implementation).eval()
    model.load_state_dict(like.state_dict())
    model.set_attn_implementation(zoo.FAMILIES[key].attention.get("sdpa", "sdpa"))
    inputs = zoo.inputs(key, "mixed", like)
    expected, _ = reduced.forward(like, inputs, tr.Uniform(keep=0.5))
    found, _ = reduced.forward(model, inputs, tr.Uniform(keep=0.5))
    assert model.config.model_type != like.config.model_type
    torch.testing.assert_close(found.logits, expected.logits, atol=reduced.TOLERANCE, rtol=0)
