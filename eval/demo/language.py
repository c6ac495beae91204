"""Stage 2: projector and language model learn to answer from the frozen tower's patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import VOCABULARY
from .packing import gather_patches, last_rows, pack, run_packed
from .scene_questions import scene_questions
from .scenes import CLASSES, COLOR_NAMES, Scene
from .tower import FEATURE_BLOCK, SLACK, SceneBatch, collate, pointing_loss

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

POINTING_LAYERS = (0, 1, 2)  # 0-based layers whose last-prompt-token row is made to find objects


@dataclass(frozen=True)
class AskedBatch:
    """Scenes with questions: ``asked[b]`` holds (question, answer), ``target`` (B, Q) the object or -1."""

    scenes: SceneBatch
    asked: list[list[tuple[str, str]]]
    target: Tensor


def ask(split: str, seed: int, scenes: list[Scene], per_image: int) -> AskedBatch:
    """Pose up to ``per_image`` questions about every scene."""
    lists = [scene_questions(split, seed, one, per_image) for one in scenes]
    target = torch.full((len(lists), max(map(len, lists))), -1)
    for row, items in enumerate(lists):
        target[row, : len(items)] = torch.tensor([item[3] for item in items])
    return AskedBatch(collate(scenes), [[item[1:3] for item in items] for items in lists], target)


@torch.no_grad()
def tower_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Patch features of the block the projector reads, (B, 144, 128) float32."""
    with torch.autocast("cpu", torch.bfloat16):
        out = model.model.vision_tower(pixels, output_hidden_states=True)
    return out.hidden_states[FEATURE_BLOCK + 1][:, 1:].float()


def choose_patches(owner: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(B, K) ascending indices: all object patches, filled up to ``count`` with random background."""
    objects = owner >= 0
    count = max(count, int(objects.sum(1).max()))
    score = torch.rand(owner.shape, generator=generator) + 2 * objects
    return score.topk(count, 1).indices.sort(1).values


def alignment_loss(model: LlavaForConditionalGeneration, image_tokens: Tensor, batch: SceneBatch) -> Tensor:
    """Projected object patches point at the words for their class, colour and place; background at none.

    ``image_tokens`` (B, 144, 128). Cross-entropy over 12 x cosine per group of words, plus the squared
    cosine of background.
    """
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    objects = batch.name >= 0
    tokens = F.normalize(image_tokens.float(), dim=-1)
    found, place = tokens[objects], batch.center[objects]
    groups = (
        (CLASSES, batch.name[objects]),
        (COLOR_NAMES, batch.color[objects]),
        (("left", "right"), (place[:, 0] > 0.5).long()),
        (("top", "bottom"), (place[:, 1] > 0.5).long()),
    )
    loss = torch.zeros(())
    for words, truth in groups:
        directions = F.normalize(table[[VOCABULARY[word] for word in words]], dim=-1)
        loss = loss + F.cross_entropy(12 * found @ directions.T, truth)
        loss = loss + 2.5 * (tokens[~objects] @ directions.T).square().mean()
    return loss


def language_loss(
    model: LlavaForConditionalGeneration,
    batch: AskedBatch,
    keep: int,
    original_positions: bool,
    align: float,
    pointing: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Answer loss on ``keep`` patches, all objects among them, plus alignment and attention terms."""
    feature = tower_features(model, batch.scenes.pixels)
    kept = choose_patches(batch.scenes.owner, keep, generator)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.model.multi_modal_projector(feature)
        packed = pack(batch.asked, kept, original_positions)
        hidden, attentions = run_packed(model, packed, gather_patches(tokens, kept), attentions=True)
    wanted = packed.labels != -100
    logits = model.lm_head(hidden[wanted].float())
    answer = F.cross_entropy(logits, packed.labels[wanted])
    owner = gather_patches(batch.scenes.owner, kept)[:, None]
    asked = torch.where(batch.target[..., None] >= 0, owner == batch.target[..., None], owner >= 0)
    everything = (owner >= 0).expand_as(asked)
    kl = []
    for layer in POINTING_LAYERS:
        rows = last_rows(packed, attentions[layer], kept.shape[1])
        goal = (everything if layer == 0 else asked) & packed.present[..., None]
        kl.append(pointing_loss(rows, goal, SLACK))
    align_loss = alignment_loss(model, tokens, batch.scenes)
    loss = answer + align * align_loss + pointing * torch.stack(kl).sum()
    with torch.no_grad():
        right = (logits.argmax(-1) == packed.labels[wanted]).float().mean()
    figures = {
        "loss": answer,
        "token": right,
        "align": align_loss,
        **{f"row{i}": k for i, k in zip(POINTING_LAYERS, kl, strict=True)},
    }
    return loss, {key: float(value.detach()) for key, value in figures.items()}
