"""Stage 1: the vision tower learns, patch by patch, what is where, and to attend to objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .scenes import CLASSES, COLOR_NAMES, SIDE, Scene

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's normalisation, the default of its image processor
STD = (0.26862954, 0.26130258, 0.27577711)
FEATURE_BLOCK = 4  # 0-based block whose output the projector reads (vision_feature_layer = -2 of 6 blocks)
POINTING_BLOCKS = (1, 2, 3, 4, 5)  # 0-based blocks whose attention is made to find objects
SLACK = 0.9  # nats; attention closer than this to uniform-over-objects is left alone


@dataclass(frozen=True)
class SceneBatch:
    """Tensors of B scenes.

    ``pixels`` (B, 3, 168, 168); per patch ``owner``, ``name``, ``color`` (B, 144), -1 for background,
    and ``center`` (B, 144, 2) in [0, 1]; per picture ``names`` (B, 26) and ``colors`` (B, 8),
    0 or 1, and ``count`` (B,).
    """

    pixels: Tensor
    owner: Tensor
    name: Tensor
    color: Tensor
    center: Tensor
    names: Tensor
    colors: Tensor
    count: Tensor


def normalize(pixels: np.ndarray) -> Tensor:
    """(B, 168, 168, 3) uint8 to (B, 3, 168, 168) float32, as the image processor does at this size."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def collate(scenes: list[Scene]) -> SceneBatch:
    """Stack scenes and spread each object's labels over its patches."""
    owner = np.stack([s.owner for s in scenes]).astype(np.int64)
    names = np.zeros((len(scenes), len(CLASSES)), np.float32)
    colors = np.zeros((len(scenes), len(COLOR_NAMES)), np.float32)
    name, color = np.full_like(owner, -1), np.full_like(owner, -1)
    center = np.zeros((*owner.shape, 2), np.float32)
    for row, one in enumerate(scenes):
        for number, thing in enumerate(one.things):
            where = owner[row] == number
            k, c = CLASSES.index(thing.name), COLOR_NAMES.index(thing.color)
            name[row, where], color[row, where] = k, c
            center[row, where] = np.array(thing.center) / SIDE
            names[row, k] = colors[row, c] = 1
    return SceneBatch(
        pixels=normalize(np.stack([s.pixels for s in scenes])),
        owner=torch.from_numpy(owner),
        name=torch.from_numpy(name),
        color=torch.from_numpy(color),
        center=torch.from_numpy(center),
        names=torch.from_numpy(names),
        colors=torch.from_numpy(colors),
        count=torch.tensor([len(s.things) for s in scenes]),
    )


class TowerHeads(nn.Module):
    """Linear read-outs used in stage 1 only and thrown away after it."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.name = nn.Linear(width, len(CLASSES) + 1)
        self.color = nn.Linear(width, len(COLOR_NAMES))
        self.center = nn.Linear(width, 2)
        self.names = nn.ModuleList(nn.Linear(width, len(CLASSES)) for _ in range(2))
        self.colors = nn.ModuleList(nn.Linear(width, len(COLOR_NAMES)) for _ in range(2))
        self.count = nn.ModuleList(nn.Linear(width, 13) for _ in range(2))


def pointing_loss(attention: Tensor, target: Tensor, slack: float) -> Tensor:
    """KL from uniform-over-target to attention over patches, above ``slack`` nats, mean over rows.

    ``attention`` (..., N), non-negative, any scale; ``target`` (..., N) bool with at least one patch set per
    row that counts.
    """
    attention = attention.float()
    log_share = (attention + 1e-8).log() - (attention.sum(-1, keepdim=True) + 1e-8).log()
    number = target.sum(-1)
    kl = -(log_share * target).sum(-1) / number.clamp(min=1) - number.clamp(min=1).log()
    valid = number > 0
    return (F.relu(kl - slack) * valid).sum() / valid.sum().clamp(min=1)


def tower_loss(
    tower: nn.Module, heads: TowerHeads, batch: SceneBatch, pointing: float
) -> tuple[Tensor, dict[str, float]]:
    """All losses of stage 1 and the figures to log; ``pointing`` weighs the attention terms."""
    with torch.autocast("cpu", torch.bfloat16):
        out = tower(batch.pixels, output_hidden_states=True, output_attentions=True)
    feature = out.hidden_states[FEATURE_BLOCK + 1].float()
    patches, objects = feature[:, 1:], batch.name >= 0
    weight = torch.ones(len(CLASSES) + 1)
    weight[-1] = 0.08  # background patches are many and easy
    logits = heads.name(patches)
    label = torch.where(objects, batch.name, len(CLASSES))
    loss = F.cross_entropy(logits.flatten(0, 1), label.flatten(), weight)
    loss = loss + 0.5 * F.cross_entropy(heads.color(patches[objects]), batch.color[objects])
    loss = loss + 5 * (heads.center(patches[objects]) - batch.center[objects]).abs().mean()
    for number, summary in enumerate((feature[:, 0], out.pooler_output.float())):
        for head, truth, positive in ((heads.names, batch.names, 6.0), (heads.colors, batch.colors, 2.0)):
            loss = loss + F.binary_cross_entropy_with_logits(
                head[number](summary), truth, pos_weight=torch.tensor(positive)
            )
        loss = loss + 0.2 * F.cross_entropy(heads.count[number](summary), batch.count)
    received = torch.stack(
        [pointing_loss(out.attentions[b].mean((1, 2))[:, 1:], objects, SLACK) for b in POINTING_BLOCKS]
    )
    rows = torch.stack(
        [pointing_loss(out.attentions[b][:, :, 0].mean(1)[:, 1:], objects, SLACK) for b in POINTING_BLOCKS]
    )
    if pointing:
        loss = loss + pointing * (received.sum() + rows.sum())
    with torch.no_grad():
        right = (logits[objects].argmax(-1) == batch.name[objects]).float().mean()
        off = (heads.center(patches[objects]) - batch.center[objects]).abs().mean() * SIDE
    figures = {"loss": loss, "patch": right, "off_px": off, "received": received.mean(), "cls": rows.mean()}
    return loss, {key: float(value.detach()) for key, value in figures.items()}
