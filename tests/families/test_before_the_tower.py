"""The stage before the tower on every family that has it: the bare tower on rows that are really fewer, and what follows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import reduced
import torch
import zoo_oracle
from transformers import DynamicCache

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor import entered_units

PACKED = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "glm4v",
    "glm4v_moe",
    "glm46v",
    "glm_ocr",
]
PACKED += [
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
    "exaone4_5",
    "hyperclovax_vision_v2",
    "cohere_compass",
    "cosmos3_omni",
]
BATCHED = ["llava", "vipllava", "llava_next", "gemma3", "smolvlm", "idefics3", "internvl", "paligemma", "paligemma2"]
ROUNDING = 2 * reduced.TOLERANCE  # of the tower, which here runs rows in batches of another width, and of the decoder
EVERY = [*PACKED, *BATCHED]
DECODED = [
    key for key in EVERY if key != "cohere_compass"
]  # whose positions the reference of the decoder does not know


@dataclass(frozen=True, kw_only=True)
class Brightest(tr.Method, register=False):
    """Keep units above the mean of their picture: a number of its own for each, 1 at least."""

    name = "brightest"
    title = "bright units"
    stages = ("pixels",)

    def plan(self, facts):
        return (tr.Step("pixels"),)

    def most(self, n):
        return n

    def reduce(self, tokens):
        light = tokens.features.mean(dim=-1)
        kept = (light > light.mean(dim=1, keepdim=True)) | (light == light.amax(dim=1, keepdim=True))
        return tr.Reduction.where(kept, score=light, positions=self.positions)


METHODS = {
    "same number": lambda **more: (tr.Random(keep=0.5, at="pixels", **more),),
    "ragged": lambda **more: (Brightest(**more),),
    "ragged, then llm": lambda **more: (Brightest(**more), tr.FastV(keep=0.6, layer=2, **more)),
}


def agrees(model, inputs, methods, positions="keep", written=True):
    out, trace = reduced.forward(model, inputs, *methods)
    assert any(len(image.kept()) < image.tokens_in for image in trace.images)
    with entered_units.shortened(model, trace):
        reduced.same_logits(model, inputs, out.logits, trace, positions, ROUNDING)
    if written:
        tokens, trace = reduced.write(model, inputs, *methods)
        with entered_units.shortened(model, trace):
            reduced.same_tokens(model, inputs, tokens, trace, positions)


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("key", DECODED)
def test_the_tower_runs_the_physically_shorter_sequence(key, methods):
    model = reduced.model(key)
    agrees(model, zoo.inputs(key, "mixed", model), METHODS[methods]())


@pytest.mark.parametrize("key", [key for key in DECODED if "video" in zoo.kinds(key)])
def test_videos(key):
    model = reduced.model(key)
    kind = "videos" if "videos" in zoo.kinds(key) else "video"
    agrees(model, zoo.inputs(key, kind, model), METHODS["ragged"]())


@pytest.mark.parametrize("key", ["qwen2_5_vl", "qwen3_vl"])
def test_renumbered(key):
    model = reduced.model(key)
    agrees(model, zoo.inputs(key, "mixed", model), METHODS["ragged"](positions="renumber"), "renumber")


@pytest.mark.parametrize("key", EVERY)
def test_fewer_rows_reach_every_block_and_the_report_says_so(key):
    model = reduced.model(key)
    inputs, rows = zoo.inputs(key, "mixed", model), []
    tower = model.base_model.get_encoder(modality="image")
    with tr.wrapped(model, Brightest()), torch.no_grad():  # behind the hooks of the library
        handles = [
            block.register_forward_pre_hook(lambda m, a, k: rows.append(a[0].shape[-2]), with_kwargs=True)
            for block in entered_units.blocks_of(tower)
        ]
        model(**inputs)
        for handle in handles:
            handle.remove()
        report, trace = tr.report(model), tr.trace(model)
    left, whole = (sum(numbers) for numbers in zip(*[(len(i.kept()), i.tokens_in) for i in trace.images]))
    with tr.wrapped(model, tr.Uniform(keep=1.0)), torch.no_grad():
        model(**inputs)
        bare = tr.report(model).by_stage
    found = report.by_stage
    assert [found[stage].flops_unreduced for stage in ("tower", "projector")] == [
        bare[stage].flops for stage in ("tower", "projector")
    ]
    assert found["tower"].flops < bare["tower"].flops * (left / whole) ** 0.5
    if key in PACKED:
        assert set(rows) == {left * tower.spatial_merge_size**2}
        one = found["projector"].flops * whole == bare["projector"].flops * left
        assert one or key == "hyperclovax_vision_v2"  # half of whose projector comes behind the places of all units
    else:
        entered = entered_units.batched(tower, trace.images)
        assert set(rows) == {max(len(own) for own in entered)}
    assert all(stage.stage == "pixels" for image in trace.images for stage in image.stages)


@pytest.mark.parametrize("key", EVERY)
def test_a_full_budget_changes_nothing(key):
    model = reduced.model(key)
    kind = "videos" if "videos" in zoo.kinds(key) else "mixed"
    inputs = zoo.inputs(key, kind, model)
    with torch.no_grad():
        bare = model(**inputs).logits
    out, trace = reduced.forward(model, inputs, tr.Uniform(keep=1.0, at="pixels"))
    assert torch.equal(out.logits, bare)
    assert not any(image.stages for image in trace.images)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, bare)


@pytest.mark.parametrize("key", EVERY)
def test_a_batch_equals_its_samples(key):
    model = reduced.model(key)
    for kind in ("mixed", "videos") if "videos" in zoo.kinds(key) else ("mixed",):
        case = zoo.case(key, kind, model)
        ranked = (Brightest(), tr.FasterVLM(keep=0.5, score="global_mean"))
        for methods in (METHODS["ragged, then llm"](), METHODS["same number"](), ranked):
            together, trace = reduced.forward(model, case.inputs, *methods)
            for b, real in enumerate(case.inputs["attention_mask"].bool()):
                single, own = reduced.forward(model, zoo.alone(key, case, b), *methods)
                torch.testing.assert_close(together.logits[b][real], single.logits[0], atol=ROUNDING, rtol=0)
                assert torch.equal(own.kept[0] + real.nonzero()[0], trace.kept[b])


@pytest.mark.parametrize("key", EVERY)
def test_signals_of_a_shortened_tower_are_aligned(key):
    """What is ranked by attention in the tower, or reads rows in front of the projector, is told of the units that entered."""
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    for method in (tr.FasterVLM(keep=0.5, score="global_mean"), tr.VisPruner(keep=0.5), tr.PruneSID(keep=0.5)):
        together = (Brightest(), method)
        out, trace = reduced.forward(model, inputs, *together)
        for image in trace.images:
            before, after = (set(stage.source[stage.source >= 0].tolist()) for stage in image.stages)
            assert after < before
        assert not out.logits.isnan().any()


@pytest.mark.parametrize("key", DECODED)
def test_a_second_turn(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    batch, length = inputs["input_ids"].shape
    cache = DynamicCache(config=model.get_decoder().config)
    question = torch.tensor([30, 31, 32, 33]).expand(batch, -1)
    with tr.wrapped(model, Brightest()):
        first = model.generate(**inputs, past_key_values=cache, max_new_tokens=3, do_sample=False)
        trace = tr.trace(model)
        both = zoo.follow(key, inputs, torch.cat([first[:, length:], question], dim=1))
        text = {name: x for name, x in both.items() if name.endswith("_ids") or name == "attention_mask"}
        second = model.generate(**text, past_key_values=cache, max_new_tokens=3, do_sample=False)
    longer = reduced.grown(reduced.told(trace, inputs["attention_mask"]), length, both["input_ids"].shape[1] - length)
    with entered_units.shortened(model, trace):
        assert second[:, -3:].tolist() == zoo_oracle.greedy(model, both, 3, **longer)


@pytest.mark.parametrize("key", ["qwen2_vl", "qwen3_vl"])
def test_features_encoded_ahead(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "single", model)
    with tr.wrapped(model, Brightest()), torch.no_grad():
        whole = model(**inputs)
        kept = tr.trace(model).kept
        features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output[0]
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        embeds[inputs["input_ids"] == model.config.image_token_id] = features
        given = {name: x for name, x in inputs.items() if name not in ("pixel_values", "image_grid_thw", "input_ids")}
        if key == "qwen3_vl":
            return  # its deep-stacked features cannot be handed over
        ahead = model(inputs_embeds=embeds, **given)
        assert torch.equal(tr.trace(model).kept[0], kept[0])
    assert ahead.logits.shape == whole.logits.shape


@pytest.mark.every_family
@pytest.mark.parametrize("key", reduced.EVERY)
def test_a_family_that_offers_the_stage_is_tried_here(key):
    model = reduced.model(key)
    offered = "pixels" in family_of(model).offers().stages
    assert offered == (key in EVERY)
    if not offered:
        with pytest.raises(ValueError, match=r"acts at stage 'pixels', which a .* model does not offer; it offers: "):
            tr.wrap(model, Brightest())


def test_what_cannot_be_served_is_refused_in_words():
    model = reduced.model("qwen2_vl")
    with pytest.raises(ValueError, match=r"'brightest' acts at stage 'pixels', which a gemma3n model does not offer"):
        tr.wrap(reduced.model("gemma3n"), Brightest())
    with pytest.raises(ValueError, match=r"at='tower'; allowed: None, 'pixels', 'projector'"):
        tr.Uniform(at="tower")

    @dataclass(frozen=True, kw_only=True)
    class Averages(tr.Pool, register=False):
        name = "averages"
        stages = ("pixels",)

        def plan(self, facts):
            return (tr.Step("pixels"),)

    inputs = zoo.inputs("qwen2_vl", "single", model)
    with pytest.raises(ValueError, match=r"at stage 'pixels' that merges tokens .*; allowed: a selection"):
        reduced.forward(model, inputs, Averages(keep=4))
