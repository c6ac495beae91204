"""Families in vLLM, reduced: images and videos, survivors at their places, also where a prompt runs in chunks."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import transformers
from servable_models import IMAGE, VIDEO, film, picture, save

import tokenreduce as tr

pytest.importorskip("vllm", reason="vllm is not installed: make test-serving")
from vllm_servers import asked, engine

KEEPS = [0.25, 1.0, 6]
# In videos of Qwen2.5-VL longer than they are wide, by their ids, text goes on behind the last frame in vLLM, and behind its
# width in transformers from 5.19 on, unreduced as well: there is none here.
PROMPTS = [
    (f"w1 w2 {IMAGE} w3 w4 w5", [picture(1, 196, 168)], []),
    (f"w1 {IMAGE} w7 {IMAGE} w3", [picture(2, 196, 168), picture(3, 112, 224)], []),
    (f"w9 {VIDEO} w3 w4", [], [film(4, 6, 56, 140)]),
    (f"w9 {IMAGE} w2 {VIDEO} w3 w4", [picture(5, 140, 140)], [film(6, 4, 112, 84)]),
    (f"w9 {IMAGE} w2 w11", [picture(6, 140, 140)], []),
]
TEXT = "w5 w9 w3 w7"


class Served(NamedTuple):
    """A family, and how many tokens run at a time: few cut a prompt, and most pictures, into chunks."""

    kind: str
    method: str
    chunk: int = 512
    videos: bool = True
    parameters: dict = {}


CASES = [
    Served("qwen2_5_vl", "hiprune"),
    Served("qwen2_vl", "pool", chunk=24),
    Served("qwen3_vl", "divprune", chunk=40),
    Served("llava_next", "hiprune", videos=False, parameters={"positions": "renumber"}),
    Served("llava_onevision", "visionzip", chunk=96, parameters={"positions": "renumber"}),
    Served("internvl", "fastervlm", chunk=40, parameters={"positions": "renumber"}),
]


def described(video) -> dict:
    frames = len(video)
    return {
        "fps": 2.0,
        "duration": frames / 2,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
    }


def in_transformers(folder, case, prompts) -> dict:
    """By budget, the answers and the lengths of ``tr.wrap``."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    want = {}
    for keep in KEEPS:
        answers, lengths = [], []
        with tr.wrapped(model, case.method, keep=keep, **case.parameters):
            for text, images, videos in prompts:
                seen = {"images": images} if images else {}
                if videos:
                    metadata = [transformers.video_utils.VideoMetadata(**described(v)) for v in videos]
                    seen |= {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}
                inputs = processor(text=[text], return_tensors="pt", **seen)
                with torch.no_grad():
                    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
                n, report = inputs["input_ids"].shape[1], tr.report(model)
                answers.append(out[0, n:].tolist())
                lengths.append(n - sum(report.tokens_in[0]) + sum(report.tokens_kept[0]))
        want[keep] = answers, lengths
    return want


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.kind)
def served(request, tmp_path_factory):
    """An engine, what holds its answers against those of transformers, and the numbers of its prompts."""
    case = request.param
    folder = save(case.kind, tmp_path_factory.mktemp(case.kind))
    chosen = [prompt for prompt in PROMPTS if case.videos or not prompt[2]]
    want = in_transformers(folder, case, chosen)
    prompts = []
    for text, images, videos in chosen:
        data = {"image": images[0] if len(images) == 1 else images} if images else {}
        if videos:
            known = [(v, {**described(v), "do_sample_frames": False}) for v in videos]
            data["video"] = known if case.kind in ("qwen2_5_vl", "qwen3_vl") else [v for v, _ in known]
        prompts.append({"prompt": text, "multi_modal_data": data})
    limits = {"image": 2, "video": 1} if case.videos else {"image": 2}
    llm = engine(folder, case.method, limit_mm_per_prompt=limits, max_num_batched_tokens=case.chunk, max_num_seqs=8)

    def equal(which: list[int], keeps: list) -> None:
        answers, lengths = asked(llm, [prompts[i] for i in which], keeps, 8)
        given = [want[0.25 if keep is None else keep] for keep in keeps]
        assert lengths == [w[1][i] for w, i in zip(given, which)]
        assert answers == [w[0][i][: len(a)] for w, i, a in zip(given, which, answers)]

    yield llm, equal, list(range(len(prompts)))
    llm.llm_engine.engine_core.shutdown()


def test_unreduced_both_libraries_agree(served):
    _, equal, every = served
    equal(every, [1.0] * len(every))


def test_answers_and_counts_are_those_of_transformers(served):
    llm, equal, every = served
    for i in every:
        equal([i], [None])
    equal(every, [None] * len(every))  # from the prefix cache
    llm.reset_prefix_cache()
    equal(every, [None] * len(every))  # from the encoder's


def test_budgets_of_one_picture_do_not_mix(served):
    llm, equal, every = served
    llm.reset_prefix_cache()
    equal(every * 3, [None] * len(every) + [1.0] * len(every) + [6] * len(every))


def test_text_is_served_beside_pictures(served):
    llm, equal, every = served
    (alone,), _ = asked(llm, [{"prompt": TEXT}], [None], 8)
    llm.reset_prefix_cache()
    equal(every, [None] * len(every))
    (again,), _ = asked(llm, [{"prompt": TEXT}], [None], 8)
    assert again == alone
