"""Engines of vLLM around small models, and what the same models answer in transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

#: of a CPU: no compilation, a small cache, no network, and as many threads as the process has been given
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}


def engine(folder: Any, method: str, **settings: Any) -> Any:
    """vLLM with ``method`` at a quarter of the tokens, by the flag that a user gives; in this process, which has it imported."""
    from vllm import LLM

    os.environ.update(ENVIRONMENT, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    given = {"limit_mm_per_prompt": {"image": 2}, "max_num_batched_tokens": 512, **settings}
    return LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        distributed_executor_backend="uni",
        max_model_len=512,
        hf_overrides={"tokenreduce": {"method": method, "keep": 0.25}},
        **given,
    )


def asked(llm: Any, prompts: Sequence[dict], keeps: Sequence[Any], tokens: int) -> tuple[list[list[int]], list[int]]:
    """Greedy answers to ``prompts``, each with its budget (None: the server's), and how long the prompts were laid out."""
    from vllm import SamplingParams

    given = [p if k is None else {**p, "mm_processor_kwargs": {"tr_keep": k}} for p, k in zip(prompts, keeps)]
    # tokens behind the end of an answer are cut off where it is compared
    out = llm.generate(given, SamplingParams(temperature=0, max_tokens=tokens), use_tqdm=False)
    return [list(x.outputs[0].token_ids) for x in out], [len(x.prompt_token_ids) for x in out]


@contextmanager
def over_http(folder: Any, method: str, port: int) -> Iterator[str]:
    """The address of an OpenAI-compatible server on this machine, with the same flag; it is stopped at the end."""
    flag = json.dumps({"tokenreduce": {"method": method, "keep": 0.25}})
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--hf-overrides", flag, "--trust-request-mm-kwargs"]
    command += ["--enforce-eager", "--max-model-len", "512", "--served-model-name", "served"]
    server = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT})
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert server.poll() is None, "the server ended before it was up"
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def posted(url: str, body: dict) -> tuple[int, dict]:
    """Status and answer of a request."""
    given = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(given, timeout=120) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
