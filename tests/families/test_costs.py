"""The bill of every family against a counter of FLOPs that sees each operation, and against the bytes of real caches."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import reduced
import torch
from probe_methods import MergePairs, Ragged
from torch.utils.flop_counter import FlopCounterMode

import tokenreduce as tr
from tokenreduce import timing
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.eval.harness.first_token import whole_prefill
from tokenreduce.eval.recipe import Recipe
from tokenreduce.unreduced import cache_bytes, pictured, prefill_flops

aten = torch.ops.aten
METHODS = (Ragged(), Ragged(layer=1))


def of_stages(key: str) -> tuple[tr.Method, ...]:
    return METHODS[:1] if "llm" in zoo.FAMILIES[key].refuses else METHODS


VARIANTS = [(key, {}) for key in reduced.FAMILIES]
VARIANTS += [("gemma3", {"window": 8}), ("paligemma2", {"window": 8}), ("qwen3_5", {"recurrent": (0, 2, 4)})]
IDS = ["-".join([key, *map(str, variant)]) for key, variant in VARIANTS]
every = pytest.mark.parametrize(("key", "variant"), VARIANTS, ids=IDS)


def solved(system, right, *_, out_val=None, **__) -> int:
    """A triangular system: half of the square, for every column of the right side."""
    return math.prod(system) * right[-1]


def grouped(rows, experts, *_, out_val=None, **__) -> int:
    return 2 * rows[0] * rows[1] * experts[-1]


class Counted:
    """FLOPs by module while ``run`` runs, operations that the counter of torch leaves out included."""

    def __init__(self, model, run) -> None:
        self.model = model
        more = {aten.linalg_solve_triangular: solved, aten._grouped_mm: grouped}
        model.requires_grad_(False)  # the counter takes a view of a parameter for a result that has a gradient
        with FlopCounterMode(display=False, depth=9, custom_mapping=more) as counter, torch.no_grad():
            run()
        model.requires_grad_(True)
        self.found, self.total = counter.get_flop_counts(), counter.get_total_flops()

    def of(self, *modules) -> int:
        names = {f"{type(self.model).__name__}.{name}" for name, m in self.model.named_modules() if m in modules}
        return sum(sum(self.found[name].values()) for name in names & set(self.found))


def samples(key, model, kind):
    """The inputs of every sample of a kind of prompt by itself: a counter sees padding, a bill does not."""
    case = zoo.case(key, kind, model)
    return case.inputs, [zoo.alone(key, case, b) for b in range(len(case.inputs["input_ids"]))]


def kind_of(key) -> str:
    """Padded samples with several pictures, and videos where the family takes them."""
    return "videos" if "videos" in zoo.kinds(key) else "mixed"


def steps_by_element(model) -> int:
    """FLOPs of recurrent layers in one step, which are no matrix products there: three for each element of a state."""
    config = decoder_of(model).config
    recurrent = [kind for kind in getattr(config, "layer_types", None) or () if kind == "linear_attention"]
    if not recurrent:
        return 0
    if hasattr(config, "mamba_num_heads"):  # the state is read by a matrix product
        return len(recurrent) * 2 * config.mamba_num_heads * config.mamba_head_dim * config.ssm_state_size
    size = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
    return len(recurrent) * 6 * size


def close(found, counted):
    assert found == pytest.approx(counted, rel=0.01)


def all_billed(key):
    if zoo.FAMILIES[key].unbilled:
        pytest.skip(zoo.FAMILIES[key].unbilled)


@pytest.mark.every_family
@every
def test_flops_by_stage(key, variant):
    all_billed(key)
    model = reduced.model(key, "eager", **variant)
    family = family_of(model)
    inside = {m for tower in family.towers for m in tower.modules()}
    inputs, alone = samples(key, model, kind_of(key))
    with tr.wrapped(model, *of_stages(key)), torch.no_grad():
        model(**inputs)
        bill = tr.report(model).by_stage
        less = [Counted(model, lambda own=own: model(**own)).of(decoder_of(model)) for own in alone]
    whole = [Counted(model, lambda own=own: model(**own)) for own in alone]
    together = Counted(model, lambda: model(**inputs))  # rows that fill up the batch of a tower count: it computes them
    projector, tower = together.of(*family.projectors), together.of(*family.towers)
    tower -= projector if set(family.projectors) & inside else 0
    close(bill["tower"].flops, tower)
    close(bill["projector"].flops, projector)
    assert bill["tower"].flops == bill["tower"].flops_unreduced
    assert projector > 0
    close(bill["prefill"].flops, sum(less))
    close(bill["prefill"].flops_unreduced, sum(one.of(decoder_of(model)) for one in whole))
    lengths, own = inputs["attention_mask"].sum(1).tolist(), pictured(model, inputs["input_ids"])
    close(sum(prefill_flops(model, lengths, own)), bill["prefill"].flops_unreduced)
    assert bill["prefill"].flops < bill["prefill"].flops_unreduced


@every
def test_flops_of_the_whole_prefill_as_a_sweep_tells_them(key, variant):
    """What the report's column is made of, tower, projector and decoder together, against all operations of the model."""
    all_billed(key)
    model = reduced.model(key, "eager", **variant)
    _, alone = samples(key, model, kind_of(key))

    def counted(own) -> int:
        found = Counted(model, lambda: model(**own, logits_to_keep=1))
        head = next(m for name, m in model.named_modules() if name.endswith("lm_head"))  # some run it over all columns
        return found.total - found.of(head, *ears)

    hears = model.base_model.get_encoder(modality="audio")  # no part of the bill, as it reads no picture
    ears = [] if hears is model.base_model else [hears]
    pictured = [own for own in alone if own.keys() & {"pixel_values", "pixel_values_videos"}]
    whole = [counted(own) for own in alone]
    with tr.wrapped(model, *METHODS):
        less = [counted(own) for own in pictured]
    for own, one, other in zip(pictured, less, whole, strict=False):
        found = whole_prefill(model, Recipe(METHODS), [own])
        close(found["flops"], one)
        close(found["flops_unreduced"], other)
    plain = whole_prefill(model, Recipe(), alone)
    close(plain["flops"], sum(whole) / len(whole))
    assert plain["flops"] == plain["flops_unreduced"]
    assert sum(less) < sum(whole[: len(less)])
    assert not tr.is_wrapped(model)


@every
def test_flops_of_a_decode_step_and_of_beams(key, variant):
    model = reduced.model(key, "eager", **variant)
    inputs = zoo.inputs(key, "single", model)

    def two():
        model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, num_beams=3)

    reduced.needs_beams(model, inputs)
    whole = Counted(model, two).of(decoder_of(model))
    with tr.wrapped(model, *METHODS):
        less = Counted(model, two).of(decoder_of(model))
        bill = tr.report(model).by_stage
    more = 3 * steps_by_element(model)
    close(bill["prefill"].flops + bill["decode step"].flops, less + more)
    close(bill["prefill"].flops_unreduced + bill["decode step"].flops_unreduced, whole + more)


@pytest.mark.every_family
@every
def test_bytes_of_the_cache(key, variant):
    model = reduced.model(key, **variant)
    for kind, beams in ((kind_of(key), 1), ("single", 3)):
        inputs, held = zoo.inputs(key, kind, model), []
        if beams > 1:
            reduced.needs_beams(model, inputs)
        handle = model.register_forward_hook(lambda module, args, output: held.append(cache_bytes(output)))  # noqa: B023
        try:
            model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=beams)
            for methods in (of_stages(key), (tr.Uniform(keep=1.0),)):
                with tr.wrapped(model, *methods):
                    model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=beams)
                    report = tr.report(model)
                assert report.kv_bytes == held[-1]
                assert report.kv_bytes_unreduced == held[0]
            assert report.kv_bytes == report.kv_bytes_unreduced
        finally:
            handle.remove()


MERGING = ["llava", "llava_next", "video_llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "smolvlm", "gemma3"]


@pytest.mark.parametrize("key", MERGING)
def test_flops_of_a_tower_that_merges(key):
    model = reduced.model(key, "eager")
    family = family_of(model)
    inputs = zoo.inputs(key, "single", model)
    inside = {m for tower in family.towers for m in tower.modules()}

    def counted() -> tuple[int, int]:
        """FLOPs of the tower and of the projector, which may be in it."""
        found = Counted(model, lambda: model(**inputs))
        projector = found.of(*family.projectors)
        return found.of(*family.towers) - (projector if set(family.projectors) & inside else 0), projector

    whole = counted()
    with tr.wrapped(model, MergePairs(r=1)):  # the smallest view has few tokens
        less = counted()
        bill = tr.report(model).by_stage
    assert less[0] < whole[0]
    assert (less[1] < whole[1]) == family.packs  # rows of the others are copied in front of it
    for stage, reduced_flops, unreduced in zip(("tower", "projector"), less, whole):
        close(bill[stage].flops, reduced_flops)
        close(bill[stage].flops_unreduced, unreduced)


def test_a_static_cache_is_as_large_as_it_was_made():
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    with tr.wrapped(model, *METHODS):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, cache_implementation="static")
        report = tr.report(model)
    assert report.kv_bytes == report.kv_bytes_unreduced > 0


def test_decode_steps_are_not_billed_to_the_next_prompt(monkeypatch):
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    ticks = iter(range(10**6))
    monkeypatch.setattr("tokenreduce.stopwatch.now", lambda: float(next(ticks)))  # each block takes one second
    with tr.wrapped(model, *METHODS):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        first = tr.report(model)
        model.generate(**inputs, max_new_tokens=9, do_sample=False)
        second = tr.report(model)
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        third = tr.report(model)
    assert first.method_ms == second.method_ms == third.method_ms > 0
    assert first.step_ms == third.step_ms == 0
    assert second.step_ms > 0


def test_the_table_shows_the_bill():
    model = reduced.model("llava")
    with tr.wrapped(model, "uniform", keep=0.5), torch.no_grad():
        model(**zoo.inputs("llava", "single", model))
        report = tr.report(model)
    lines = str(report).splitlines()
    for stage in ("tower", "projector", "prefill", "decode step"):
        assert any(line.startswith(f"{stage} GFLOPs") for line in lines)
    assert set(report.as_dict()["by_stage"]["tower"]) >= {"flops", "flops_unreduced", "seconds"}


def test_an_audio_encoder_is_said_to_be_left_out():
    for key, said in (("qwen2_5_omni_thinker", ("the audio encoder",)), ("llava", ())):
        model = reduced.model(key)
        with tr.wrapped(model, "uniform", keep=0.5), torch.no_grad():
            model(**zoo.inputs(key, "single", model))
            report = tr.report(model)
        assert report.uncounted == report.as_dict()["uncounted"] == said
        assert ("not counted" in str(report)) == bool(said)


def hooks(model) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("key", ["llava", "qwen3_vl"])  # whose projector is behind the tower, and inside it
def test_seconds_by_stage(key, monkeypatch):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "single", model)
    arms = {"whole": nullcontext, "less": lambda: tr.wrapped(model, "uniform", keep=0.5)}
    model(**inputs)  # transformers installs hooks of its own in the first forward pass
    before = hooks(model)
    ticks = iter(range(10**6))
    monkeypatch.setattr(timing, "now", lambda: float(next(ticks)))  # a second between any two looks at the clock
    laps = timing.time_prefill(model, inputs, arms, repeats=2, by_stage=True)
    assert hooks(model) == before
    for lap in (*laps["whole"], *laps["less"]):
        assert set(lap.seconds) == {"tower", "projector", "prefill"}
        assert lap.seconds["prefill"] == 1
        assert sum(lap.seconds.values()) < lap.total_s
    report = timing.with_seconds(laps["less"][0].report, laps["less"], laps["whole"])
    assert report.by_stage["prefill"].seconds == report.by_stage["prefill"].seconds_unreduced == 1
    assert report.by_stage["decode step"].seconds is None
    assert "in 1000.00 instead of 1000.00 ms" in str(report)
    plain = timing.time_prefill(model, inputs, arms, repeats=1)
    assert plain["less"][0].seconds == {}
