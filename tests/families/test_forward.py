"""Contract 3 on every family, around the plain call: losses, chosen logits, half precision, adapters, compilers, devices."""

from __future__ import annotations

import accelerate
import peft
import pytest
import reduced
import torch
import torch.nn.functional as F
import zoo_oracle
from probe_methods import MergeAt

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of

BOTH = (tr.HiPrune(keep=0.6), tr.FastV(keep=0.5, layer=1))


def moving(key: str) -> str:
    return "videos" if "videos" in zoo.kinds(key) else "mixed"


@pytest.mark.parametrize("methods", [BOTH, (MergeAt(),)], ids=["both", "merge"])
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_the_loss_is_that_of_the_shorter_sequence(key, methods):
    model = reduced.model(key)
    case = zoo.case(key, moving(key), model)
    inputs = case.inputs
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < zoo.common.WORDS, -100)
    labels[torch.arange(len(labels)), inputs["attention_mask"].argmax(1)] = -100  # nothing real predicts a first token
    with tr.wrapped(model, *methods), torch.no_grad():
        loss = model(**inputs, labels=labels).loss
        trace = tr.trace(model)
    what = reduced.told(trace, inputs["attention_mask"])
    columns = zoo_oracle.columns(model, inputs, what["keep"], what["drop_at"])
    losses, counted = 0.0, 0
    for b, logits in enumerate(zoo_oracle.logits(model, inputs, **what)):
        goal = labels[b, columns[b]][1:]
        losses += F.cross_entropy(logits[:-1], goal, reduction="sum", ignore_index=-100)
        counted += int((goal != -100).sum())
    assert counted == (labels != -100).sum()
    torch.testing.assert_close(loss, losses / counted, atol=reduced.TOLERANCE, rtol=0)


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_chosen_logits_and_short_outputs(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "single", model)
    last = inputs["input_ids"].shape[1] - 1
    with tr.wrapped(model, *BOTH), torch.no_grad():
        full, trace = model(**inputs).logits, tr.trace(model)
        assert full.shape[1] == last + 1
        for chosen in (1, 3, torch.tensor([0, 2, last])):
            some = model(**inputs, logits_to_keep=chosen).logits
            expected = full[:, -chosen:] if isinstance(chosen, int) else full[:, chosen]
            torch.testing.assert_close(some, expected, atol=reduced.TOLERANCE, rtol=0)
        assert torch.equal(model(**inputs, return_dict=False)[0], full)
    with tr.wrapped(model, *BOTH, output_length="reduced"), torch.no_grad():
        short = model(**inputs).logits
    kept = ~trace.visual[0]
    kept[trace.kept_at[1][0]] = True
    torch.testing.assert_close(short[0], full[0, kept], atol=reduced.TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_half_precision(key, dtype):
    """Near what float32 gives for the same tokens: cosine of the last logits above 0.95 and 0.999 (8 and 11 bits, 5 layers)."""
    whole, half = reduced.model(key), zoo.build(key).to(dtype)
    inputs = zoo.inputs(key, "single", whole)
    cast = {name: x.to(dtype) if x.is_floating_point() and "pixel" in name else x for name, x in inputs.items()}
    methods = (tr.Uniform(keep=0.6), MergeAt(layer=2))
    exact, _ = reduced.forward(whole, inputs, *methods)
    rough, _ = reduced.forward(half, cast, *methods)
    assert rough.logits.dtype == dtype
    alike = F.cosine_similarity(exact.logits[0, -1], rough.logits[0, -1].float(), dim=0)
    assert alike > (0.95 if dtype == torch.bfloat16 else 0.999)
    tokens, trace = reduced.write(half, cast, *BOTH)
    assert min(tokens[0]) >= zoo.common.WORDS
    assert len(trace.kept[0]) < int(trace.visual.sum())


@pytest.mark.parametrize("key", ["llava_next", "qwen2_5_vl", "internvl", "gemma3"])
def test_an_adapted_model(key):
    """Of each kind of tower one: tiles, packed, pixel shuffle, pooled."""
    model = zoo.build(key)
    inputs = zoo.inputs(key, "mixed", model)
    config = peft.LoraConfig(target_modules=r".*language_model.*(q_proj|up_proj)", init_lora_weights=False)
    with torch.no_grad():
        plain = model(**inputs).logits
        adapted = peft.get_peft_model(model, config).eval()
        expected = adapted(**inputs).logits
        assert not torch.equal(expected, plain)
        with tr.wrapped(adapted, *BOTH):
            short, trace = adapted(**inputs).logits, tr.trace(adapted)
            tokens = adapted.generate(**inputs, max_new_tokens=3, do_sample=False)[:, -3:].tolist()
        assert torch.equal(adapted(**inputs).logits, expected)
    reduced.same_logits(adapted.get_base_model(), inputs, short, trace)
    reduced.same_tokens(adapted.get_base_model(), inputs, tokens, trace)


@pytest.mark.long
@pytest.mark.parametrize("key", ["llava", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("first", ["wrapped", "compiled"])
def test_a_compiled_language_model(key, first):
    model = zoo.build(key)
    inputs = zoo.inputs(key, "mixed", model)
    expected, _ = reduced.forward(model, inputs, *BOTH)
    if first == "compiled":
        decoder_of(model).compile(backend="eager")
    with tr.wrapped(model, *BOTH), torch.no_grad():
        if first == "wrapped":
            decoder_of(model).compile(backend="eager")
        torch.testing.assert_close(model(**inputs).logits, expected.logits, atol=reduced.TOLERANCE, rtol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("key", "how"),
    # the bare LLaVA-OneVision cannot write when its newline is offloaded
    [("llava", "offloaded"), ("llava_onevision", "dispatched"), ("qwen2_vl", "offloaded"), ("qwen2_vl", "dispatched")],
)
def test_a_model_whose_weights_are_fetched(key, how, tmp_path):
    model = zoo.build(key)
    inputs = zoo.inputs(key, moving(key), model)
    expected, _ = reduced.forward(model, inputs, *BOTH)
    written, _ = reduced.write(model, inputs, *BOTH)
    if how == "offloaded":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        layers = next(name for name, m in model.named_modules() if m is decoder_of(model).layers)
        places = {"": "cpu", **{f"{layers}.{i}": "disk" for i in (1, 3)}}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    out, _ = reduced.forward(model, inputs, *BOTH)
    assert torch.equal(out.logits, expected.logits)
    assert reduced.write(model, inputs, *BOTH)[0] == written
