"""What every family must show: the bare model on a shorter sequence, in every way to write, and scores of the right tokens.

The doctor is the oracle of each stage (``tests/eval/test_doctor.py``). It knows no family: whatever the bare decoder is handed is
cut down. Families that are not ``brief`` show more in the other files of this folder; for the brief ones those tests are long.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import reduced
import torch
from eager_maps import maps, shown

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor import check, shortened, stages
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.signals import AttentionReceived

pytestmark = pytest.mark.every_family

BRIEF = [key for key in reduced.FAMILIES if zoo.FAMILIES[key].brief]
LISTENS = [key for key in reduced.FAMILIES if zoo.FAMILIES[key].listens]
STATIC = {"cache_implementation": "static", "disable_compile": True}


def methods(key: str, **policy: str) -> tuple[tr.Method, ...]:
    family = zoo.FAMILIES[key]
    first = tr.HiPrune(keep=0.6, **policy) if family.listens else tr.Uniform(keep=0.6, **policy)
    return (first,) if "llm" in family.refuses else (first, tr.FastV(keep=0.5, layer=family.layer, **policy))


def kinds(key: str) -> list[str]:
    return ["mixed", *[kind for kind in ("videos", "video") if kind in zoo.kinds(key)][:1]]


def expected(family: check.Family, inputs: dict, trace: tr.Trace, length: int, **how: bool) -> list:
    """Per sample the columns that reach the last layer of the bare model, and their logits."""
    given = shortened.caught(family.bare, inputs, how.pop("generate"))
    found = []
    for b, columns in enumerate(stages.left(trace, inputs["attention_mask"], length)):
        last = columns.at[max(columns.at)] if columns.at else columns.entered
        found.append((last, shortened.logits(family.bare, inputs, given, b, columns, **how)))
    return found


@pytest.mark.parametrize("key", BRIEF)
@torch.no_grad()
def test_a_full_budget_changes_no_bit(key):
    model = reduced.model(key)
    for kind in kinds(key):
        inputs = zoo.inputs(key, kind, model)
        plain = model(**inputs).logits
        for method in methods(key):
            with tr.wrapped(model, type(method)(keep=1.0)):
                assert torch.equal(model(**inputs).logits, plain)
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("key", BRIEF)
def test_a_batch_equals_its_samples(key):
    """Pictures of unlike size, a sample without any, padding on both sides, and videos."""
    model = reduced.model(key)
    for kind in (*kinds(key), "right"):
        case = zoo.case(key, kind, model)
        together, trace = reduced.forward(model, case.inputs, *methods(key))
        assert any(len(image.kept(-1)) < image.tokens_in for image in trace.images)
        written = None if kind != "mixed" else reduced.write(model, case.inputs, *methods(key))[0]
        for b, real in enumerate(case.inputs["attention_mask"].bool()):
            alone = zoo.alone(key, case, b)
            single, own = reduced.forward(model, alone, *methods(key))
            torch.testing.assert_close(together.logits[b][real], single.logits[0], atol=reduced.TOLERANCE, rtol=0)
            for layer in trace.kept_at:
                assert torch.equal(own.kept_at[layer][0] + real.nonzero()[0], trace.kept_at[layer][b])
            if written is not None:
                assert reduced.write(model, alone, *methods(key))[0] == [written[b]]


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize("key", BRIEF)
def test_the_bare_model_on_a_shorter_sequence(key, positions):
    family = check.Family(key)
    chosen = methods(key, positions=positions)
    if positions == "renumber":  # in front of the first layer, from which the rotary tables of all layers are made
        chosen = chosen[:1]
    for kind in (*kinds(key), "right"):
        inputs = zoo.inputs(key, kind, family.model)
        out, trace = reduced.forward(family.model, inputs, *chosen)
        length = inputs["input_ids"].shape[1]
        for b, (columns, want) in enumerate(
            expected(family, inputs, trace, length, generate=False, renumber=positions == "renumber")
        ):
            torch.testing.assert_close(out.logits[b, columns], want, atol=1e-4, rtol=0)


def ways(model, inputs: dict) -> list[dict]:
    """The ways in which the bare model writes what it writes by default."""
    plain = model.generate(**inputs, max_new_tokens=reduced.STEPS, do_sample=False)
    found = []
    for way in (STATIC, {"use_cache": False}):
        with suppress(ValueError, RuntimeError, AttributeError, TypeError, IndexError):
            if torch.equal(model.generate(**inputs, max_new_tokens=reduced.STEPS, do_sample=False, **way), plain):
                found.append(way)
    return found


@pytest.mark.parametrize("key", BRIEF)
def test_every_way_to_write(key):
    model = reduced.model(key)
    case = zoo.case(key, "mixed", model)
    greedy, _ = reduced.write(model, case.inputs, *methods(key))
    for way in ways(model, case.inputs):
        assert reduced.write(model, case.inputs, *methods(key), **way)[0] == greedy
    reduced.needs_beams(model, case.inputs)
    beams, _ = reduced.write(model, case.inputs, *methods(key), num_beams=3)
    alone = [reduced.write(model, zoo.alone(key, case, b), *methods(key), num_beams=3)[0] for b in range(len(beams))]
    assert alone == [[row] for row in beams]


@pytest.mark.parametrize("key", BRIEF)
def test_a_second_turn(key):
    """Two turns on one cache are one long prompt to the bare model, whose pictures were shortened in the first."""
    family = check.Family(key)
    inputs = zoo.inputs(key, "mixed", family.model)
    batch, length = inputs["input_ids"].shape
    question = torch.tensor([30, 31, 32, 33]).expand(batch, -1)
    with tr.wrapped(family.model, *methods(key)):
        first = family.model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        trace = tr.trace(family.model)
        both = zoo.follow(key, inputs, torch.cat([first.sequences[:, length:], question], dim=1))
        text = {name: x for name, x in both.items() if name.endswith("_ids") or name == "attention_mask"}
        new = family.model.generate(**text, past_key_values=first.past_key_values, max_new_tokens=3, do_sample=False)[
            :, -3:
        ]
    for step in range(3):
        longer = zoo.follow(key, both, new[:, :step])
        for b, (_, want) in enumerate(expected(family, longer, trace, length, generate=True)):
            assert int(new[b, step]) == int(want[-1].argmax())


@pytest.mark.parametrize("key", BRIEF)
@torch.no_grad()
def test_a_picture_in_a_second_turn(key):
    """It is reduced as in one prompt, where the bare model itself goes on as in one prompt."""
    model = reduced.model(key)
    one, two = (zoo.case(key, "single", model, seed=seed) for seed in (0, 3))
    both = zoo.joined(key, one, two)
    length = one.inputs["input_ids"].shape[1]

    def in_turns() -> torch.Tensor:
        cache = model(**one.inputs, use_cache=True).past_key_values
        return model(**{**two.inputs, "attention_mask": both["attention_mask"]}, past_key_values=cache).logits

    try:
        bare = (in_turns() - model(**both).logits[:, length:]).abs().max().item()
    except (ValueError, RuntimeError) as error:
        pytest.skip(f"the bare model does not take a second picture in a second turn: {error}")
    if bare > reduced.TOLERANCE:
        pytest.skip(f"the bare model gives a second picture other logits in a second turn, by {bare:.2g}")
    with tr.wrapped(model, methods(key)[0]):
        torch.testing.assert_close(in_turns(), model(**both).logits[:, length:], atol=reduced.TOLERANCE, rtol=0)


@pytest.mark.parametrize("key", LISTENS)
def test_scores_are_those_of_the_rows_that_make_a_token(key):
    """What a method is shown of a token is what the rows of the tower receive on which, by its gradient, the token depends."""
    model, eager = reduced.model(key), reduced.model(key, "eager")
    inputs, family = zoo.inputs(key, "single", model), family_of(eager)
    block = family.facts().feature_block
    signal = AttentionReceived(block)
    found, trace = shown(model, inputs, (signal,))
    layers = [family.layers(t)[block] for t in range(len(family.towers))]
    rows, embeds = with_a_graph(eager, inputs, layers)
    heard = maps(eager, inputs, [family.tower_attention(block, t) for t in range(len(family.towers))])
    received = torch.cat([total(calls, family.packs) for calls in heard if calls])
    mix = torch.randn(embeds.shape[-1], generator=torch.Generator().manual_seed(0))
    assert trace.images
    for image, own in zip(trace.images, found, strict=True):
        for column, score in zip(image.columns.tolist(), own[signal].tolist(), strict=True):
            grads = torch.autograd.grad(embeds[0, column] @ mix, rows, retain_graph=True, allow_unused=True)
            made_of = torch.cat(
                [
                    torch.zeros(x.shape[:-1], dtype=torch.bool).flatten() if g is None else (g != 0).any(-1).flatten()
                    for x, g in zip(rows, grads)
                ]
            )
            assert 0 < made_of.sum() < len(made_of)
            assert score == pytest.approx(float(received[made_of].mean()), rel=1e-5)


def total(calls: list[torch.Tensor], packed: bool) -> torch.Tensor:
    """Mean over heads and queries of what each row receives; a packed picture's queries come in several calls."""
    if not packed:
        return torch.cat([weights.mean(dim=(1, 2)).flatten() for weights in calls])
    sums = torch.cat([weights.mean(dim=1).sum(dim=1).flatten() for weights in calls])
    return sums / len(sums)


def with_a_graph(model, inputs: dict, layers: list) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the blocks return at each call, and the embeddings (B, L, D) that enter the decoder."""
    rows: dict = {layer: [] for layer in layers}
    entered: list[torch.Tensor] = []

    def leave(module, args, output):
        rows[module].append(output[0] if isinstance(output, tuple) else output)

    def enter(module, args, kwargs):
        embeds, deep = kwargs["inputs_embeds"], kwargs.get("deepstack_features")
        if deep:  # pictures are zeros there: what a method is shown of them joins in front of the first layers
            embeds = embeds.masked_scatter(kwargs["vision_mask"], deep[min(deep)])
        entered.append(embeds)

    handles = [layer.register_forward_hook(leave) for layer in layers]
    handles.append(decoder_of(model).register_forward_pre_hook(enter, with_kwargs=True))
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [x for calls in rows.values() for x in calls], entered[0]
