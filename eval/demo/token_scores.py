"""What the demo model attends to: scores of the visual tokens of a split, and how many object patches they find.

Computed here from the model's own attention weights, independently of the toolkit's methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .language import ask
from .packing import last_rows, pack, run_packed
from .scene_questions import scene_questions
from .scenes import GRID, scene
from .tower import FEATURE_BLOCK, normalize

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

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
def scored_pictures(
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


def slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


@torch.no_grad()
def language_rows(model: LlavaForConditionalGeneration, pictures: Pictures) -> list[Tensor]:
    """Per layer (n, Q, 144): attention of each question's last prompt token over all image tokens."""
    rows: list[list[Tensor]] = []
    for part in slices(len(pictures.features), 25):
        kept = torch.arange(GRID * GRID).expand(len(pictures.features[part]), -1)
        packed = pack(pictures.asked[part], kept)
        tokens = model.model.multi_modal_projector(pictures.features[part])
        _, attentions = run_packed(model, packed, tokens, attentions=True)
        now = [last_rows(packed, attention, GRID * GRID) for attention in attentions]
        width = pictures.target.shape[1]
        rows.append([torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in now])
    return [torch.cat(layer) for layer in zip(*rows, strict=True)]


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
