"""Measure the demo model: accuracy on all and on few image tokens, and where its attention points.

``python -m tokenreduce.eval.demo.evaluate --weights DIR`` writes ``evaluation.json`` and the model card into
DIR. The token scores are computed here from the model's own attention weights, independently of the
toolkit's methods.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .language import ask
from .packing import BLOCKED, FIRST, answers_right, gather_patches, last_rows, pack, run_packed
from .scenes import GRID, KINDS, scene, scene_questions
from .tower import FEATURE_BLOCK, normalize

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

KEEPS = (72, 36, 16, 8, 4)  # of 144: 50 %, 25 %, 11 %, 5.6 %, 2.8 %
FASTV_LAYER = 1  # 0-based layer whose last-prompt-token row ranks; later layers see the survivors
PER_IMAGE = 14


@dataclass(frozen=True)
class Pictures:
    """n pictures of a split.

    ``features`` (n, 144, 128); ``owner`` (n, 144); ``asked`` and ``kinds`` per picture; ``target`` (n, Q);
    ``scores`` {name: (n, 144)}, higher is kept first.
    """

    features: Tensor
    owner: Tensor
    asked: list[list[tuple[str, str]]]
    kinds: list[list[str]]
    target: Tensor
    scores: dict[str, Tensor]


@torch.no_grad()
def look(
    model: LlavaForConditionalGeneration, split: str, seed: int, images: int, per_image: int = PER_IMAGE
) -> Pictures:
    """Run the tower on a split and collect token scores; the model needs eager attention."""
    features: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {}
    scenes = [scene(split, seed, index) for index in range(images)]
    batch = ask(split, seed, scenes, per_image)
    for start in range(0, images, 50):
        pixels = normalize(np.stack([one.pixels for one in scenes[start : start + 50]]))
        out = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
        features.append(out.hidden_states[FEATURE_BLOCK + 1][:, 1:])
        for block, attention in enumerate(out.attentions):
            rows.setdefault(f"cls {block}", []).append(attention[:, :, 0].mean(1)[:, 1:])
            rows.setdefault(f"received {block}", []).append(attention.mean((1, 2))[:, 1:])
    scores = {"random": torch.rand(images, GRID * GRID, generator=torch.Generator().manual_seed(seed))}
    scores.update({name: torch.cat(parts) for name, parts in rows.items()})
    kinds = [[item[0] for item in scene_questions(split, seed, one, per_image)] for one in scenes]
    return Pictures(torch.cat(features), batch.scenes.owner, batch.asked, kinds, batch.target, scores)


def top(score: Tensor, count: int) -> Tensor:
    """(B, count) ascending indices of the largest scores; ties go to the lowest index."""
    order = score.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(-1).values


def grid(count: int, images: int) -> Tensor:
    """(images, count) indices of a regular sub-grid whose sides are the most equal factors of ``count``."""
    rows = max(r for r in range(1, int(count**0.5) + 1) if count % r == 0)
    steps = [[int((i + 0.5) * GRID / n) for i in range(n)] for n in (rows, count // rows)]
    picked = torch.tensor([y * GRID + x for y in steps[0] for x in steps[1]])
    return picked.expand(images, -1)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


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
    for part in _slices(len(kept), 25):
        packed = pack(pictures.asked[part], kept[part], original)
        tokens = model.model.multi_modal_projector(gather_patches(pictures.features[part], kept[part]))
        hidden, _ = run_packed(model, packed, tokens)
        marks += answers_right(model, packed, hidden)[packed.present].tolist()
    return table_row(marks, [kind for kinds in pictures.kinds for kind in kinds])


@torch.no_grad()
def language_rows(model: LlavaForConditionalGeneration, pictures: Pictures) -> list[Tensor]:
    """Per layer (n, Q, 144): attention of each question's last prompt token over all image tokens."""
    rows: list[list[Tensor]] = []
    for part in _slices(len(pictures.features), 25):
        kept = torch.arange(GRID * GRID).expand(len(pictures.features[part]), -1)
        packed = pack(pictures.asked[part], kept)
        tokens = model.model.multi_modal_projector(pictures.features[part])
        _, attentions = run_packed(model, packed, tokens, attentions=True)
        now = [last_rows(packed, attention, GRID * GRID) for attention in attentions]
        width = pictures.target.shape[1]
        rows.append([torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in now])
    return [torch.cat(layer) for layer in zip(*rows, strict=True)]


@torch.no_grad()
def fastv_accuracy(
    model: LlavaForConditionalGeneration, pictures: Pictures, rows: Tensor, count: int
) -> dict[str, float]:
    """Accuracy when layers after `FASTV_LAYER` see ``count`` image tokens, ranked by ``rows`` (n, Q, 144).

    Dropped tokens are hidden by the mask and positions stay as they were, which equals removing them.
    """
    pairs = [(n, q) for n, asked in enumerate(pictures.asked) for q in range(len(asked))]
    marks: list[bool] = []
    for part in _slices(len(pairs), 100):
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


def found(score: Tensor, wanted: Tensor, count: Tensor | int) -> float:
    """Mean share of ``wanted`` (..., 144) patches among the ``count`` top scores, over rows with any."""
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    hit = (rank < torch.as_tensor(count)[..., None]) & wanted
    number = wanted.sum(-1)
    return round(float((hit.sum(-1) / number.clamp(min=1))[number > 0].mean()), 4)


def attention_tables(pictures: Pictures, rows: list[Tensor]) -> dict[str, Any]:
    """Share of object patches found by attention, per vision block and per language layer."""
    objects = pictures.owner >= 0
    number = objects.sum(1)
    vision = [
        {
            "block": block,
            **{
                f"{name}_{label}": found(pictures.scores[f"{name} {block}"], objects, count)
                for name in ("cls", "received")
                for label, count in (("top_n", number), ("top_36", 36), ("top_16", 16))
            },
        }
        for block in range(6)
    ]
    every = objects[:, None].expand_as(rows[0])
    asked = pictures.owner[:, None] == torch.where(pictures.target < 0, -2, pictures.target)[..., None]
    present = torch.tensor([[q < len(a) for q in range(pictures.target.shape[1])] for a in pictures.asked])[..., None]
    language = [
        {
            "layer": layer,
            "objects_top_36": found(row, every & present, 36),
            "asked_top_16": found(row, asked & present, 16),
            "asked_top_8": found(row, asked & present, 8),
        }
        for layer, row in enumerate(rows)
    ]
    return {"object_share": round(float(objects.float().mean()), 4), "vision": vision, "language": language}


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
        pictures = look(model, split, seed, count)
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

    from .card import write_card

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
