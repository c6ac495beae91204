"""Fewer tokens and fewer bits: what the demo model answers, and the bytes its cache holds, for each of both and for the pair.

python benchmarks/cache_bits.py [--test 8]    (writes benchmarks/results/cache_bits.json and the table of docs/methods/vidkv.md)

Two ways of asking: in one prompt, where the first word of an answer comes of exact keys and values, and behind the cache of the
picture, where the whole question reads what is held in few bits. The model runs in bfloat16.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

import tokenreduce as tr
from tokenreduce.eval import demo
from tokenreduce.eval.demo import replies, right
from tokenreduce.eval.demo.measure import Bench
from tokenreduce.eval.results import environment, write_json

HERE = Path(__file__).resolve().parent
DATA, PAGE = HERE / "results/cache_bits.json", HERE.parent / "docs/methods/vidkv.md"
BEGIN, END = "<!-- cache_bits -->\n", "<!-- end -->"
KEEPS = (1.0, 0.25, 0.11)
CODES = {"exact": None, "vidkv": {}, "vidkv, keys of 1 bit": {"key_bits": 1.0, "protect": 0.0}}


def behind_the_picture(bench: Bench) -> list[str]:
    """Answers to questions that come once the picture is in the cache, one row after the other."""
    found, processor = [""] * len(bench.asked), bench.processor
    picture = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    for batch in bench.batches:
        for i, row in enumerate(batch["rows"]):
            one = bench.inputs({name: part[i : i + 1] for name, part in batch.items()})
            ids = one["input_ids"][:, one["attention_mask"][0].bool()]
            until, cache = (
                int((ids[0] == picture).nonzero()[-1]) + 1,
                DynamicCache(config=bench.model.config.text_config),
            )
            with torch.no_grad():
                first = {"input_ids": ids[:, :until], "attention_mask": torch.ones_like(ids[:, :until])}
                bench.model(**first, pixel_values=one["pixel_values"], past_key_values=cache)
                whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                out = bench.model.generate(**whole, past_key_values=cache, do_sample=False)
            found[row] = replies(processor, out, ids.shape[1])[0]
    return found


def measured(bench: Bench, keep: float, code: dict[str, Any] | None) -> dict[str, Any]:
    """Right answers in both ways, and the bytes of a prompt's cache."""
    methods = [tr.HiPrune(keep=keep), *([] if code is None else [tr.VidKV(**code)])]
    with tr.wrapped(bench.model, *methods):
        marks = {way: ask(bench) for way, ask in (("behind", behind_the_picture), ("prompt", Bench.replies))}
        report = tr.report(bench.model)
    correct = {
        way: sum(right(r, q.answer) for r, q in zip(said, bench.asked, strict=True)) for way, said in marks.items()
    }
    rows = len(report.tokens_in)
    return {
        "tokens": report.tokens_kept[0][0],
        "right": correct,
        "kib": report.kv_bytes / rows / 1024,
        "kib_unreduced": report.kv_bytes_unreduced / rows / 1024,
    }


def table(data: dict[str, Any]) -> str:
    """The page's table of ``data``."""
    head = (
        "visual tokens",
        "cache",
        "KiB of a prompt",
        "of all tokens at 16 bits",
        "right, in one prompt",
        "right, behind the cache",
    )
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in data["rows"]:
        cells = [row["tokens"], row["code"], f"{row['kib']:.0f}", f"{row['kib'] / row['kib_unreduced']:.1%}"]
        cells += [f"{row['right'][way] / data['questions']:.1%}" for way in ("prompt", "behind")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    asked = f"{data['questions']} questions about {data['pictures']} pictures"
    said = f"{asked}; tokens by HiPrune; bytes of the last batch, padding included. Asked afterwards, a question reads the cache."
    return "\n".join(lines) + f"\n\n{said}\n"


def page(text: str, data: dict[str, Any]) -> str:
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{table(data)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--test", type=int, default=8, help="pictures of the test split")
    options.add_argument("--page", action="store_true", help="only write the table again")
    given = options.parse_args()
    if not given.page:
        model, processor = demo.load()
        asked = demo.questions("test", images=given.test)
        bench = Bench(model.to(torch.bfloat16), processor, asked)
        rows = []
        for keep, (name, code) in itertools.product(KEEPS, CODES.items()):
            rows.append({"keep": keep, "code": name, **measured(bench, keep, code)})
            print(rows[-1], flush=True)
        write_json(
            DATA, {"questions": len(asked), "pictures": given.test, "rows": rows, "environment": environment(model)}
        )
    PAGE.write_text(page(PAGE.read_text(), json.loads(DATA.read_text())))


if __name__ == "__main__":
    main()
