"""The OpenAI-compatible server of vLLM, reduced: a budget per request over HTTP, and mistakes told to who made them."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenreduce.eval import demo

pytest.importorskip("vllm", reason="vllm is not installed: make test-serving")
from vllm_servers import over_http, posted


def test_every_user_has_a_budget():
    asked = demo.questions("test", images=3)[:12]

    def ask(question, keep):
        file = io.BytesIO()
        question.image.save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.question}]
        body = {
            "model": "served",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 4,
            "temperature": 0,
        }
        own = {} if keep is None else {"mm_processor_kwargs": {"tr_keep": keep}}
        return posted(f"{address}/v1/chat/completions", {**body, **own})

    keeps = [None, 1.0, 16] * 4
    left = {None: 36, 1.0: 144, 16: 16}
    with over_http(demo.WEIGHTS, "hiprune", 8127) as address:
        with ThreadPoolExecutor(6) as users:
            replies = list(users.map(ask, asked, keeps))
        whole = [ask(question, 1.0)[1]["usage"]["prompt_tokens"] for question in asked]
        for question, keep, (status, reply), tokens in zip(asked, keeps, replies, whole):
            assert status == 200
            assert demo.right(reply["choices"][0]["message"]["content"], question.answer)
            assert reply["usage"]["prompt_tokens"] == tokens - 144 + left[keep]
        status, reply = ask(asked[0], 145)
        assert status == 400
        assert "keep=145 exceeds the 144 visual tokens" in reply["error"]["message"]
        assert ask(asked[0], None)[0] == 200
