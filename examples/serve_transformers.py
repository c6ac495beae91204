"""A small server around one wrapped model: many users at once, a budget of visual tokens for each request.

    pip install 'tokenreduce[serve]'
    python examples/serve_transformers.py                                          # the demo model, which is built in
    python examples/serve_transformers.py Qwen/Qwen2.5-VL-3B-Instruct --method hiprune --keep 0.25 --device cuda

    curl localhost:8000/answer -H 'Content-Type: application/json' \\
        -d '{"image": "'$(base64 -w0 picture.png)'", "question": "what color is the star ?", "keep": 36}'

Requests run in threads of one process and share the weights. ``tr.budget`` holds in the thread that says so, so what one user
asks for, another never notices. For requests that share passes of the model, see vLLM in docs/serving.md.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import io
from contextlib import nullcontext
from typing import Any

import torch
from fastapi import FastAPI, HTTPException
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel

import tokenreduce as tr


class Question(BaseModel):
    """``image``: a file in base64. ``keep``: a fraction or a count; left out, the server's own."""

    image: str
    question: str
    keep: float | int | None = None
    max_new_tokens: int = 64


class Answer(BaseModel):
    """``visual_tokens``: those the language model read, of ``visual_tokens_whole``."""

    answer: str
    visual_tokens: int
    visual_tokens_whole: int


def create_app(model: Any, processor: Any) -> FastAPI:
    """The server of a ``model`` that is wrapped already."""
    app = FastAPI(title="tokenreduce")

    @app.post("/answer")
    def answer(asked: Question) -> Answer:  # not async: each request runs in a thread of its own
        try:
            picture = Image.open(io.BytesIO(base64.b64decode(asked.image, validate=True))).convert("RGB")
        except (binascii.Error, UnidentifiedImageError) as error:
            raise HTTPException(400, f"image: not a picture in base64 ({error})") from error
        content = [{"type": "image", "image": picture}, {"type": "text", "text": asked.question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        try:
            with nullcontext() if asked.keep is None else tr.budget(model, asked.keep), torch.inference_mode():
                written = model.generate(**inputs, max_new_tokens=asked.max_new_tokens, do_sample=False)
        except (TypeError, ValueError) as error:  # a budget that cannot be, told in words
            raise HTTPException(400, str(error)) from error
        report = tr.report(model)
        (reply,) = processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return Answer(
            answer=reply, visual_tokens=sum(report.tokens_kept[0]), visual_tokens_whole=sum(report.tokens_in[0])
        )

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="name or folder; left out, the demo model")
    parser.add_argument("--method", default="hiprune")
    parser.add_argument("--keep", type=lambda text: float(text) if "." in text else int(text), default=0.25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()

    import uvicorn

    if given.model is None:
        from tokenreduce.eval import demo

        model, processor = demo.load()
    else:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(given.model, dtype="auto").eval()
        processor = AutoProcessor.from_pretrained(given.model)
    tr.wrap(model.to(given.device), given.method, keep=given.keep)
    uvicorn.run(create_app(model, processor), port=given.port)


if __name__ == "__main__":
    main()
