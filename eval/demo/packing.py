"""Many questions about one picture in one sequence, for training and for teacher-forced scoring.

``<s> USER : [K image tokens]`` comes once; each question with its answer follows as a block that sees this
prefix and itself only, with positions that restart after the prefix. The result equals separate prompts at a
fraction of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .model import BOS, EOS, IMAGE, PAD, VOCABULARY, word_ids

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

PREFIX = (BOS, VOCABULARY["user"], VOCABULARY[":"])
FIRST = len(PREFIX)  # index of the first image token
BLOCKED = -1e9


@dataclass(frozen=True)
class Packed:
    """B sequences of length L with up to Q questions each and K image tokens.

    ``ids``, ``positions``, ``labels`` (B, L), labels -100 where nothing is asked; ``mask`` (B, 1, L, L)
    additive float32; ``last`` (B, Q) index of the token that predicts the answer's first word, 0 for absent
    questions; ``present`` (B, Q) bool; ``block`` (B, L) question number of a token, -1 in prefix and
    padding.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    mask: Tensor
    last: Tensor
    present: Tensor
    block: Tensor


def _rows(pairs: list[tuple[str, str]], head: int, start: int) -> tuple[list[list[int]], list[int]]:
    """One picture's blocks as [ids, labels, positions, block numbers], and where each answer is predicted."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    block: list[int] = []
    last: list[int] = []
    for number, (question, answer) in enumerate(pairs):
        prompt, reply = word_ids(question + " assistant:"), [*word_ids(answer), EOS]
        last.append(head + len(ids) + len(prompt) - 1)
        ids += prompt + reply[:-1]
        labels += [-100] * (len(prompt) - 1) + reply
        length = len(prompt) + len(reply) - 1
        positions += range(start, start + length)
        block += [number] * length
    return [ids, labels, positions, block], last


def pack(asked: list[list[tuple[str, str]]], kept: Tensor, original_positions: bool = False) -> Packed:
    """Pack (question, answer) pairs per picture; ``kept`` (B, K) ascending indices of the kept patches.

    ``original_positions`` leaves gaps where patches were dropped, so text keeps its distance; else positions
    are consecutive.
    """
    batch, count = kept.shape
    head = FIRST + count
    start = FIRST + 144 if original_positions else head
    rows = [_rows(pairs, head, start) for pairs in asked]
    length = head + max(len(values[0]) for values, _ in rows)
    width = max(len(last) for _, last in rows)
    ids = torch.full((batch, length), PAD)
    labels = torch.full((batch, length), -100)
    positions = torch.zeros(batch, length, dtype=torch.long)
    block = torch.full((batch, length), -1)
    last = torch.zeros(batch, width, dtype=torch.long)
    present = torch.zeros(batch, width, dtype=torch.bool)
    ids[:, :FIRST], ids[:, FIRST:head] = torch.tensor(PREFIX), IMAGE
    positions[:, :head] = torch.arange(head)
    if original_positions:
        positions[:, FIRST:head] = FIRST + kept
    for number, (lists, where) in enumerate(rows):
        for target, values in zip((ids, labels, positions, block), lists, strict=True):
            target[number, head : head + len(values)] = torch.tensor(values)
        last[number, : len(where)] = torch.tensor(where)
        present[number, : len(where)] = True
    step = torch.arange(length)
    seen = (step[None, :] < head) | (block[:, :, None] == block[:, None, :])
    seen &= step[:, None] >= step[None, :]
    mask = torch.where(seen, 0.0, BLOCKED)[:, None]
    return Packed(ids, positions, labels, mask, last, present, block)


def gather_patches(values: Tensor, kept: Tensor) -> Tensor:
    """Rows ``kept`` (B, K) of ``values`` (B, 144, ...)."""
    return values[torch.arange(len(kept))[:, None], kept]


def run_packed(
    model: LlavaForConditionalGeneration, packed: Packed, image_tokens: Tensor, attentions: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden states (B, L, 128) and, on request, attention per layer (B, heads, L, L), else none.

    ``image_tokens`` (B, K, 128) are projected features; attention is returned by models set to "eager" only.
    """
    embeds = model.get_input_embeddings()(packed.ids)
    count = image_tokens.shape[1]
    embeds = torch.cat((embeds[:, :FIRST], image_tokens.to(embeds), embeds[:, FIRST + count :]), 1)
    out = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=packed.mask,
        position_ids=packed.positions,
        use_cache=False,
        output_attentions=attentions,
    )
    return out.last_hidden_state, out.attentions or ()


def answers_right(model: LlavaForConditionalGeneration, packed: Packed, hidden: Tensor) -> Tensor:
    """(B, Q) bool: every answer token, the end token included, is the arg-max. Equals greedy exact match."""
    wanted = packed.labels != -100
    wrong = torch.zeros_like(wanted)
    wrong[wanted] = model.lm_head(hidden[wanted]).argmax(-1) != packed.labels[wanted]
    out = packed.present.clone()
    rows, columns = wrong.nonzero(as_tuple=True)
    out[rows, packed.block[rows, columns]] = False
    return out


def last_rows(packed: Packed, attention: Tensor, count: int) -> Tensor:
    """(B, Q, K): head-mean attention of each question's last prompt token over the image tokens."""
    rows = attention[torch.arange(len(packed.last))[:, None], :, packed.last, FIRST : FIRST + count]
    return rows.float().mean(2)
