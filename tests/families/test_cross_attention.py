"""Models that attend to pictures across, against the bare model whose rows and masks are cut down by hand."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from probe_methods import Ragged
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.beside import fewer_rows, merged, rows_left
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, Keys, ProjectorInput

TOLERANCE = 3e-5  # float32 logits of size 5
STEPS = 4
ROWS = 17  # of a tile: [CLS] and 4 x 4 patches; four tiles a picture
METHODS = [
    tr.Uniform(keep=0.5),
    tr.Random(keep=5),
    tr.HiPrune(keep=0.25, object_layer=1),
    tr.ToMe(keep=0.5, at="projector"),
]


@cache
def model(attn: str = "sdpa"):
    return zoo.build("mllama", attn)


@pytest.fixture(params=["mixed", "right"])
def case(request):
    return zoo.case("mllama", request.param, model())


@torch.no_grad()
def forward(inputs, *methods, attn="sdpa"):
    with tr.wrapped(model(attn), *methods):
        return model(attn)(**inputs).logits, tr.trace(model(attn)), tr.report(model(attn))


def write(inputs, **options):
    options = {"max_new_tokens": STEPS, "do_sample": False, **options}
    return model().generate(**inputs, **options)[:, -STEPS:].tolist()


def test_a_full_budget_changes_nothing(case):
    with torch.no_grad():
        bare, tokens = model()(**case.inputs).logits, write(case.inputs)
    for method in (tr.Uniform(keep=1.0), tr.HiPrune(keep=1.0, object_layer=1), tr.ToMe(keep=1.0, at="projector")):
        logits, trace, report = forward(case.inputs, method)
        assert torch.equal(logits, bare)
        assert report.flops == report.flops_unreduced
        assert report.kv_bytes == report.kv_bytes_unreduced
        assert [image.tokens_in for image in trace.images] == [16, 32, 64]
        with tr.wrapped(model(), method):
            assert write(case.inputs) == tokens


@pytest.mark.parametrize("method", [*METHODS, Ragged()], ids=lambda method: method.name)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_batch_is_its_samples_with_fewer_rows(case, method, attn):
    logits, trace, report = forward(case.inputs, method, attn=attn)
    if method.name != "ragged":
        assert report.tokens_kept == [[method.budget.count(16)], [method.budget.count(n) for n in (32, 64)]]
    for b in range(2):
        alone = zoo.alone("mllama", case, b)
        with fewer_rows(model(attn), rows_left(case, trace, b), merged(trace, b)), torch.no_grad():
            expected = model(attn)(**alone).logits[0]
        real = case.inputs["attention_mask"][b].bool()
        torch.testing.assert_close(logits[b, real], expected, atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        assert (model(attn)(**case.inputs).logits - logits).abs().max() > 0.05


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str
)
def test_written_tokens(method, options):
    case = zoo.case("mllama", "mixed", model())
    with tr.wrapped(model(), method):
        tokens, trace = write(case.inputs, **options), tr.trace(model())
    for b in range(2):
        with fewer_rows(model(), rows_left(case, trace, b), merged(trace, b)):
            alone = write(zoo.alone("mllama", case, b), num_beams=options.get("num_beams", 1))
        assert tokens[b] == alone[0]


def test_a_second_turn_of_text():
    case, method = zoo.case("mllama", "mixed", model()), tr.Uniform(keep=0.25)
    cache = DynamicCache(config=model().get_decoder().config)
    with tr.wrapped(model(), method):
        first = model().generate(**case.inputs, past_key_values=cache, max_new_tokens=3, do_sample=False)
        trace, bytes_of_first = tr.trace(model()), tr.report(model()).kv_bytes
        longer = torch.cat([first, torch.tensor([[30, 31, 32]]).expand(2, -1)], dim=1)
        mask = F.pad(case.inputs["attention_mask"], (0, longer.shape[1] - case.inputs["input_ids"].shape[1]), value=1)
        sees = {"cross_attention_mask": case.inputs["cross_attention_mask"], "attention_mask": mask}
        second = (
            model()
            .generate(input_ids=longer, **sees, past_key_values=cache, max_new_tokens=STEPS, do_sample=False)[
                :, -STEPS:
            ]
            .tolist()
        )
        assert tr.report(model()).kv_bytes == bytes_of_first  # a turn without a picture leaves the report alone
    for b in range(2):
        real = mask[b].bool()
        alone = zoo.alone("mllama", case, b) | {
            "input_ids": longer[b : b + 1, real],
            "attention_mask": mask[b : b + 1, real],
        }
        with fewer_rows(model(), rows_left(case, trace, b)):
            assert second[b] == write(alone)[0]


def test_a_second_turn_with_a_picture():
    """Rows of the second picture join those that are left of the first."""
    both = zoo.case("mllama", ([["i1", "i2"]], None), model())
    ids, sees = both.inputs["input_ids"], both.inputs["cross_attention_mask"]
    start = int(both.visuals[0][1].columns[0]) - 2
    cache, method = DynamicCache(config=model().get_decoder().config), tr.Uniform(keep=0.25)
    pictures = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    given_in_turns = [
        {
            "input_ids": ids[:, columns],
            "attention_mask": torch.ones_like(ids[:, : columns.stop]),
            "cross_attention_mask": sees[:, columns, : i + 1],
            **{name: both.inputs[name][:, i : i + 1] for name in pictures},
        }
        for i, columns in enumerate((slice(0, start), slice(start, None)))
    ]
    kept = []
    with tr.wrapped(model(), method), torch.no_grad():
        for given in given_in_turns:
            logits = model()(**given, past_key_values=cache).logits
            kept += tr.trace(model()).kept[0].tolist()
        report = tr.report(model())
    assert (report.tokens_in, report.tokens_kept) == ([[64]], [[16]])
    assert report.kv_bytes < report.kv_bytes_unreduced
    tiles = [i * 4 * ROWS + t * ROWS for i, n in enumerate((2, 4)) for t in range(n)]
    rows, cache = sorted([*tiles, *kept]), DynamicCache(config=model().get_decoder().config)
    for i, given in enumerate(given_in_turns):
        with (
            fewer_rows(model(), [row for row in rows if row < (i + 1) * 4 * ROWS], earlier=i * 4 * ROWS),
            torch.no_grad(),
        ):
            expected = model()(**given, past_key_values=cache).logits
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


# ---------------------------------------------------------------------- what methods are shown


def probe(needs):
    class Probe(Method, register=False):
        name, title, stages = "probe", "probe", ("projector",)
        sees = "image"

        def plan(self, facts: ModelFacts):
            return (Step("projector", needs=needs),)

        def reduce(self, tokens):
            seen.append(tokens)
            return Reduction.select(torch.arange(1).expand(len(tokens.features), 1), tokens.num_tokens)

    seen: list = []
    return Probe(), seen


@pytest.mark.parametrize("block", [1, 3])
def test_attention_is_that_of_real_queries(block):
    """Rows that fill up tiles, and tiles that fill up a picture, are seen by real rows, but are no queries."""
    case = zoo.case("mllama", ([["i1"]], None), model("eager"))
    signal, maps = AttentionReceived(block), []
    tower = model("eager").model.vision_model
    attention = [*tower.transformer.layers, *tower.global_transformer.layers][block].self_attn
    handle = attention.register_forward_hook(lambda module, args, output: maps.append(output[1]))
    method, seen = probe((signal,))
    forward(case.inputs, method, attn="eager")
    handle.remove()
    padded = -(-ROWS // 8) * 8
    tiles = maps[0][0].mean(0).unflatten(0, (4, padded)).unflatten(2, (4, padded))  # query tile, row, key tile, row
    expected = tiles[:2, :ROWS].mean((0, 1))[:2, 1:ROWS].flatten()
    torch.testing.assert_close(seen[0].signals[signal][0], expected, atol=2e-6, rtol=0)


def test_rows_before_the_projector_become_the_features():
    case = zoo.case("mllama", "mixed", model())
    signal = ProjectorInput()
    method, seen = probe((signal, Keys(1)))
    forward(case.inputs, method)
    for tokens in seen:
        assert tokens.signals[Keys(1)].shape[1] == tokens.num_tokens
        projected = model().model.multi_modal_projector(tokens.signals[signal])
        torch.testing.assert_close(projected, tokens.features, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- costs, traces, refusals


def test_the_bill_is_that_of_a_counter():
    """A picture of four tiles, so that no row is padding, which a bill leaves out and a counter sees."""
    case = zoo.case("mllama", ([["i2"]], None), model())
    _, trace, report = forward(case.inputs, tr.Uniform(keep=0.25))
    counted = []
    for keep in (rows_left(case, trace, 0), range(4 * ROWS)):
        with fewer_rows(model(), keep), torch.no_grad(), FlopCounterMode(display=False, depth=9) as counter:
            model()(**case.inputs)
        counted.append(sum(counter.get_flop_counts()["MllamaForConditionalGeneration.model.language_model"].values()))
    assert [report.flops, report.flops_unreduced] == pytest.approx(counted, rel=1e-6)
    bare = model()(**case.inputs, use_cache=True)
    cache = getattr(bare, "cache", None) or bare.past_key_values
    sizes = [sum(x.numel() * 4 for x in (layer.keys, layer.values)) for layer in cache.layers]
    assert report.kv_bytes_unreduced == sum(sizes)
    assert report.kv_bytes == sum(n * 20 // (4 * ROWS) if i in (1, 3) else n for i, n in enumerate(sizes))
    assert report.by_stage["tower"].flops == report.by_stage["tower"].flops_unreduced > 0
    assert report.step[0] < report.step[1]
    assert report.tokens_at_layer == [[0], [16], [0], [16], [0]]


def test_a_trace_shows_and_saves_itself(tmp_path):
    _, trace, _ = forward(zoo.inputs("mllama", "mixed", model()), tr.HiPrune(keep=0.25, object_layer=1))
    assert isinstance(trace.show(), Image.Image)
    trace.save(tmp_path / "trace.npz")
    again = tr.load_trace(tmp_path / "trace.npz")
    assert [kept.tolist() for kept in again.kept] == [kept.tolist() for kept in trace.kept]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fastv", "stage 'llm', which a mllama model does not offer; it offers: projector"),
        ("cdpruner", "attends to pictures across, where no text is among them; use a method that looks at the picture"),
    ],
)
def test_what_has_no_meaning_is_refused_in_words(method, said):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model().modules()]
    with pytest.raises(ValueError, match=said):
        tr.wrap(model(), method, keep=0.5)
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model().modules()]


def test_states_that_were_encoded_elsewhere_are_refused():
    inputs = zoo.inputs("mllama", ([["i0"]], None), model())
    given = {name: x for name, x in inputs.items() if "pixel" not in name and "aspect" not in name}
    states = torch.randn(4, ROWS, 32)
    with tr.wrapped(model(), "uniform", keep=0.5), pytest.raises(ValueError, match="came without pixel_values"):
        model()(**given, cross_attention_states=states)


def test_text_alone_is_left_alone():
    ids = torch.tensor([[1, 20, 21, 22]])
    with torch.no_grad():
        bare = model()(input_ids=ids).logits
        with tr.wrapped(model(), "uniform", keep=0.5):
            assert torch.equal(model()(input_ids=ids).logits, bare)
