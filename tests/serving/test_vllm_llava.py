"""The demo model in vLLM, reduced: the answers and the counts of ``tr.wrap`` in transformers, whatever else is being served."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tokenreduce.eval import demo

pytest.importorskip("vllm", reason="vllm is not installed: make test-serving")
from vllm_servers import asked, engine

KEEPS = [0.25, 1.0, 8]


@pytest.fixture(scope="module", params=["hiprune", "visionzip"])
def served(request):
    """An engine, prompts, and by budget the answers and the lengths of ``tr.wrap``; what is left is counted anew in both."""
    questions = demo.questions("test", images=6)[:40]
    model, processor = demo.load()
    want = {}
    for keep in KEEPS:
        with tr.wrapped(model, request.param, keep=keep, positions="renumber"):
            text = [demo.prompt(q.question) for q in questions]
            inputs = processor(images=[q.image for q in questions], text=text, return_tensors="pt", padding=True)
            with torch.no_grad():
                out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            (kept,) = {n for row in tr.report(model).tokens_kept for n in row}
        lengths = (inputs["attention_mask"].sum(dim=1) - 144 + kept).tolist()
        want[keep] = [until_end(row, processor) for row in out[:, inputs["input_ids"].shape[1] :].tolist()], lengths
    prompts = [{"prompt": demo.prompt(q.question), "multi_modal_data": {"image": q.image}} for q in questions]
    llm = engine(demo.WEIGHTS, request.param)

    def equal(which: list[int], keeps: list) -> None:
        answers, lengths = asked(llm, [prompts[i] for i in which], keeps, 4)
        given = [want[0.25 if keep is None else keep] for keep in keeps]
        assert [until_end(answer, processor) for answer in answers] == [w[0][i] for w, i in zip(given, which)]
        assert lengths == [w[1][i] for w, i in zip(given, which)]

    yield llm, prompts, equal
    llm.llm_engine.engine_core.shutdown()


def until_end(answer: list[int], processor) -> list[int]:
    end = processor.tokenizer.eos_token_id
    return answer[: answer.index(end)] if end in answer else answer


def test_answers_and_counts_are_those_of_transformers(served):
    llm, prompts, equal = served
    every = list(range(len(prompts)))
    for i in every[:3]:
        equal([i], [None])
    equal(every, [None] * len(every))  # three of them from the prefix cache
    llm.reset_prefix_cache()
    equal(every, [None] * len(every))  # all of them from the encoder's


def test_budgets_of_one_picture_do_not_mix(served):
    llm, prompts, equal = served
    every = list(range(len(prompts)))
    equal(every, [[None, 1.0, 8][i % 3] for i in every])
    equal([0] * 9, [None, 1.0, 8] * 3)
    llm.reset_prefix_cache()
    equal([0] * 9, [8, 1.0, None] * 3)


def test_text_is_served_beside_pictures(served):
    llm, prompts, _ = served
    text = {"prompt": "USER: what color is the star ? ASSISTANT:"}
    alone, length = asked(llm, [text], [None], 4)
    together, lengths = asked(llm, [prompts[0], text, prompts[1], text], [8, None, None, None], 4)
    assert together[1] == together[3] == alone[0]
    assert lengths[1] == length[0]


def test_a_request_that_is_taken_back_leaves_nothing(served):
    from vllm import SamplingParams

    llm, prompts, equal = served
    llm.reset_prefix_cache()
    llm.llm_engine.add_request("gone", prompts[0], SamplingParams(max_tokens=200, ignore_eos=True))
    llm.llm_engine.step()
    llm.llm_engine.abort_request(["gone"])
    equal([0, 1, 0], [8, None, None])


def test_what_a_request_cannot_have_is_refused_and_others_go_on(served):
    llm, prompts, equal = served
    for keep in (0, 1.5, 145, "auto"):
        with pytest.raises((TypeError, ValueError), match="keep="):
            asked(llm, [prompts[0]], [keep], 4)
    with pytest.raises(ValueError, match="tr_method"):
        llm.generate([{**prompts[0], "mm_processor_kwargs": {"tr_method": "pool"}}], use_tqdm=False)
    equal([0, 1], [None, 8])
