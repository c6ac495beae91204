"""A wrapped model served by transformers: a pipeline, a server of many threads; continuous batching, which is refused."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from scripts import script
from transformers import pipeline

import tokenreduce as tr
from tokenreduce.eval import demo


@pytest.fixture(scope="module")
def loaded():
    model, processor = demo.load()
    return tr.wrap(model, "hiprune", keep=0.25), processor


@pytest.fixture(scope="module")
def asked():
    return demo.questions("test", images=3)[:12]


def test_a_pipeline_takes_a_wrapped_model(loaded, asked):
    model, processor = loaded
    answers = pipeline("image-text-to-text", model=model, processor=processor)
    for question in asked[:4]:
        content = [{"type": "image", "image": question.image}, {"type": "text", "text": question.question}]
        (out,) = answers(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
        assert demo.right(out["generated_text"], question.answer)
        assert tr.report(model).tokens_kept == [[36]]


@pytest.mark.parametrize("name", ["generate_batch", "init_continuous_batching"])
def test_continuous_batching_is_refused_in_words(loaded, name):
    model, _ = loaded
    given = [[1, 5, 7]] if name == "generate_batch" else None
    with pytest.raises(ValueError, match=r"continuous batching.*model\.generate"):
        getattr(model, name)(given)


def test_continuous_batching_is_there_again_without_reduction():
    model, _ = demo.load()
    tr.unwrap(tr.wrap(model, "hiprune"))
    assert "generate_batch" not in vars(model)


# ---------------------------------------------------------------------------------------------- the example server


@pytest.fixture(scope="module")
def client(loaded):
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'tokenreduce[serve]'")
    from fastapi.testclient import TestClient

    return TestClient(script("examples/serve_transformers.py").create_app(*loaded))


def body(question, **more) -> dict:
    file = io.BytesIO()
    question.image.save(file, "PNG")
    return {
        "image": base64.b64encode(file.getvalue()).decode(),
        "question": question.question,
        "max_new_tokens": 4,
        **more,
    }


def test_many_users_at_once_each_have_their_own_budget(client, asked):
    budgets = [{}, {"keep": 1.0}, {"keep": 0.5}, {"keep": 16}]
    left = [36, 144, 72, 16]
    given = [(question, i % 4) for i, question in enumerate(asked)]
    alone = [client.post("/answer", json=body(q, **budgets[b])).json() for q, b in given]
    with ThreadPoolExecutor(6) as users:
        together = list(users.map(lambda x: client.post("/answer", json=body(x[0], **budgets[x[1]])).json(), given))
    assert together == alone
    for (question, b), reply in zip(given, together):
        assert demo.right(reply["answer"], question.answer)
        assert (reply["visual_tokens"], reply["visual_tokens_whole"]) == (left[b], 144)


def test_what_cannot_be_is_told_the_user_and_nobody_else(client, asked):
    for keep in (0, 1.5, -3, 145):
        reply = client.post("/answer", json=body(asked[0], keep=keep))
        assert reply.status_code == 400
        assert f"keep={keep}" in reply.json()["detail"]
    reply = client.post("/answer", json={**body(asked[0]), "image": "no picture"})
    assert reply.status_code == 400
    assert "image" in reply.json()["detail"]
    assert client.post("/answer", json=body(asked[0])).json()["visual_tokens"] == 36
