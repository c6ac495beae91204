"""Measure the demo model: accuracy on all and on few image tokens, and where its attention points.

``python -m tokenreduce.eval.demo.evaluate --weights DIR`` writes ``evaluation.json`` and the model card into
DIR.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .model_card import write_card
from .packing import BLOCKED, FIRST, answers_right, gather_patches, pack, run_packed
from .scene_questions import KINDS
from .scenes import GRID
from .token_scores import Pictures, attention_tables, grid, language_rows, scored_pictures, slices, top

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

KEEPS = (72, 36, 16, 8, 4)  # of 144: 50 %, 25 %, 11 %, 5.6 %, 2.8 %
FASTV_LAYER = 1  # 0-based layer whose last-prompt-token row ranks; later layers see the survivors


def table_row(marks: list[bool], kinds: list[str]) -> dict[str, float]:
    """Accuracy over all questions and per kind, rounded to four digits."""
    row = {"all": sum(marks) / len(marks)}
    for kind in KINDS:
        mine = [mark for mark, name in zip(marks, kinds, strict=True) if name == kind]
        if mine:
            row[kind] = sum(mine) / len(mine)
    return {key: round(value, 4) for key, value in row.items()}


@torch.no_grad()
def accuracy_of(
    model: LlavaForConditionalGeneration, pictures: Pictures, kept: Tensor, original: bool = False
) -> dict[str, float]:
    """Accuracy when only patches ``kept`` (n, K) enter the language model, renumbered unless ``original``."""
    marks: list[bool] = []
    for part in slices(len(kept), 25):
        packed = pack(pictures.asked[part], kept[part], original)
        tokens = model.model.multi_modal_projector(gather_patches(pictures.features[part], kept[part]))
        hidden, _ = run_packed(model, packed, tokens)
        marks += answers_right(model, packed, hidden)[packed.present].tolist()
    return table_row(marks, [kind for kinds in pictures.kinds for kind in kinds])


@torch.no_grad()
def fastv_accuracy(
    model: LlavaForConditionalGeneration, pictures: Pictures, rows: Tensor, count: int
) -> dict[str, float]:
    """Accuracy when layers after `FASTV_LAYER` see ``count`` image tokens, ranked by ``rows`` (n, Q, 144).

    Dropped tokens are hidden by the mask and positions stay as they were, which equals removing them.
    """
    pairs = [(n, q) for n, asked in enumerate(pictures.asked) for q in range(len(asked))]
    marks: list[bool] = []
    for part in slices(len(pairs), 100):
        chosen = pairs[part]
        picture = torch.tensor([n for n, _ in chosen])
        packed = pack([[pictures.asked[n][q]] for n, q in chosen], torch.arange(GRID * GRID).expand(len(chosen), -1))
        score = torch.stack([rows[n, q] for n, q in chosen])
        dropped = torch.ones_like(score, dtype=torch.bool).scatter_(1, top(score, count), False)
        mask = packed.mask.clone()
        image = mask[..., FIRST : FIRST + GRID * GRID]
        image.masked_fill_(dropped[:, None, None], BLOCKED)

        def shorten(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], mask: Tensor = mask) -> tuple:
            return args, {**kwargs, "attention_mask": mask}

        layers = model.model.language_model.layers[FASTV_LAYER + 1 :]
        handles = [layer.register_forward_pre_hook(shorten, with_kwargs=True) for layer in layers]
        try:
            tokens = model.model.multi_modal_projector(pictures.features[picture])
            hidden, _ = run_packed(model, packed, tokens)
        finally:
            for handle in handles:
                handle.remove()
        marks += answers_right(model, packed, hidden)[packed.present].tolist()
    return table_row(marks, [kind for kinds in pictures.kinds for kind in kinds])


def evaluate(model: LlavaForConditionalGeneration, images: dict[str, int], seed: int = 0) -> dict[str, Any]:
    """All tables for the splits in ``images`` {split: number of pictures}."""
    model.set_attn_implementation("eager")
    out: dict[str, Any] = {"seed": seed, "tokens": GRID * GRID, "splits": {}}
    names = [
        "random",
        "grid",
        "cls 4",
        "cls 5",
        *(f"received {block}" for block in range(6)),
        "fastv",
        "random late",
    ]
    for split, count in images.items():
        start = time.monotonic()
        pictures = scored_pictures(model, split, seed, count)
        rows = language_rows(model, pictures)
        chance = torch.rand(rows[0].shape, generator=torch.Generator().manual_seed(seed))
        every = torch.arange(GRID * GRID).expand(count, -1)
        result: dict[str, Any] = {
            "images": count,
            "questions": sum(map(len, pictures.asked)),
            "full": accuracy_of(model, pictures, every),
            "kept": {},
        }
        for name in tqdm(names, desc=split):
            result["kept"][name] = {}
            for keep in KEEPS:
                if name == "fastv":
                    row = fastv_accuracy(model, pictures, rows[FASTV_LAYER], keep)
                elif name == "random late":  # FastV's place, but chance instead of attention
                    row = fastv_accuracy(model, pictures, chance, keep)
                else:
                    kept = grid(keep, count) if name == "grid" else top(pictures.scores[name], keep)
                    row = accuracy_of(model, pictures, kept)
                result["kept"][name][str(keep)] = row
        result["attention"] = attention_tables(pictures, rows)
        result["wall_seconds"] = round(time.monotonic() - start, 1)
        out["splits"][split] = result
    return out


def main(argv: list[str] | None = None) -> None:
    """Command line: evaluate saved weights and write ``evaluation.json`` and the model card next to them."""
    from transformers import LlavaForConditionalGeneration

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--test", type=int, default=200, help="pictures of the test split")
    parser.add_argument("--hard", type=int, default=100, help="pictures of the hard split")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model = LlavaForConditionalGeneration.from_pretrained(args.weights, dtype=torch.float32).eval()
    results = evaluate(model, {"test": args.test, "hard": args.hard})
    (args.weights / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    write_card(args.weights)


if __name__ == "__main__":
    main()
