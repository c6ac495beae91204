"""The reference for every family: the bare decoder, layer by layer, on sequences that are really shorter.

Shares no code with the hooks. What the multimodal model hands to its decoder is caught once, on the unwrapped model;
from there on every sample runs alone, without padding, cache or mask functions: the kept columns are sliced out, and
each layer gets an explicit additive mask (1, 1, T, T). Generation runs again from the start for every token.

Give it the unwrapped model. ``change(b, row)`` may alter what enters the decoder (say, a merged token) before ``keep``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenreduce.eval.doctor.shortened import decoder_of


@dataclass
class Row:
    """One sample as its decoder receives it. T tokens, of ``columns`` (T,) of the prompt; -1 for written tokens."""

    columns: Tensor
    embeds: Tensor  # (T, D)
    ids: Tensor  # (A, T) position ids on A axes, 1 or 3
    blocks: Tensor  # (T,) tokens of equal number >= 0 attend to each other both ways
    deepstack: dict[int, Tensor]  # (T, D) to add in front of layer i, zero for text

    def take(self, which: Tensor) -> Row:
        return Row(
            self.columns[which],
            self.embeds[which],
            self.ids[:, which],
            self.blocks[which],
            {layer: features[which] for layer, features in self.deepstack.items()},
        )

    def write(self, embed: Tensor, position: int) -> Row:
        """One more token of text (D,) at ``position`` on every axis."""
        return Row(
            torch.cat([self.columns, torch.tensor([-1])]),
            torch.cat([self.embeds, embed[None]]),
            torch.cat([self.ids, torch.full_like(self.ids[:, :1], position)], dim=1),
            torch.cat([self.blocks, torch.tensor([-1])]),
            {i: torch.cat([x, x.new_zeros(1, x.shape[1])]) for i, x in self.deepstack.items()},
        )


def logits(model, inputs: dict, keep=None, drop_at=None, positions="keep", generate=False, change=None) -> list[Tensor]:
    """Expected logits (T', V) of a forward pass per sample, one row for each column that reaches the last layer.

    ``keep``: per sample the columns of ``input_ids`` that enter the decoder (text included), None for all of them.
    ``drop_at[k]``: per sample the columns still there from decoder layer k on.
    ``positions``: "keep" the ids the model itself assigns, or "renumber" the survivors 0, 1, ... on all axes wherever
    something is dropped. ``generate``: start from the position ids that ``generate`` makes, not those of ``forward``.
    """
    rows = [_kept(row, keep, b, positions, change) for b, row in enumerate(caught(model, inputs, generate))]
    return [_run(model, row, _stages(drop_at, b), positions)[0] for b, row in enumerate(rows)]


def columns(model, inputs: dict, keep=None, drop_at=None) -> list[Tensor]:
    """Per sample the columns of ``input_ids`` that the rows of ``logits`` belong to."""
    rows = [_kept(row, keep, b, "keep") for b, row in enumerate(caught(model, inputs))]
    return [_run(model, row, _stages(drop_at, b), "keep")[1] for b, row in enumerate(rows)]


def greedy(model, inputs: dict, steps: int, keep=None, drop_at=None, positions="keep", change=None) -> list[list[int]]:
    """``steps`` expected tokens per sample. Written tokens go on from the id of the last column of the whole prompt.

    (Not from the largest id, which the time axis of a Qwen2.5-VL video may hold.)
    """
    out = []
    for b, whole in enumerate(caught(model, inputs, generate=True)):
        row, tokens = _kept(whole, keep, b, positions, change), []
        following = int((row if positions == "renumber" else whole).ids[0, -1]) + 1
        for step in range(steps):
            tokens.append(int(_run(model, row, _stages(drop_at, b), positions)[0][-1].argmax()))
            row = row.write(model.get_input_embeddings()(torch.tensor(tokens[-1])).detach(), following + step)
        out.append(tokens)
    return out


@torch.no_grad()
def caught(model, inputs: dict, generate: bool = False) -> list[Row]:
    """What the decoder receives at prefill, cut into samples without their padding."""
    got: dict = {}

    def catch(module, args, kwargs):
        got.update({} if got else kwargs)

    deltas = getattr(model.base_model, "rope_deltas", None)  # a conversation under way goes on as if nothing happened
    handle = decoder_of(model).register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model.generate(**inputs, max_new_tokens=1, do_sample=False) if generate else model(**inputs)
    finally:
        handle.remove()
        if hasattr(model.base_model, "rope_deltas"):
            model.base_model.rope_deltas = deltas
    embeds, ids = got["inputs_embeds"], got.get("position_ids")
    b, width = embeds.shape[:2]
    if ids is None:
        ids = torch.arange(width)
    axes = 3 if "mrope_section" in decoder_of(model).config.rope_parameters else 1
    ids = ids[-3:].expand(axes, b, width) if ids.ndim == 3 else ids.expand(axes, b, width)
    real = inputs["attention_mask"].bool()
    blocks = _blocks(model, inputs)
    deepstack = {}
    behind = dict(enumerate(got.get("deepstack_visual_embeds") or [], start=1))
    for layer, features in (got.get("deepstack_features") or behind).items():
        deepstack[layer] = torch.zeros_like(embeds)
        deepstack[layer][got["visual_pos_masks"] if behind else got["vision_mask"][..., 0]] = features
    whole = torch.arange(width)
    return [
        Row(whole, embeds[i], ids[:, i], blocks[i], {k: x[i] for k, x in deepstack.items()}).take(whole[real[i]])
        for i in range(b)
    ]


def _blocks(model, inputs: dict) -> Tensor:
    """(B, L) number of the block within which tokens attend both ways, -1 for none."""
    kinds, family = inputs.get("token_type_ids"), model.config.model_type
    if family == "molmo2":
        return torch.where(inputs["mm_token_type_ids"] == 1, 0, -1)
    if kinds is None or family not in ("gemma3", "paligemma"):
        return torch.full_like(inputs["input_ids"], -1)
    if family == "paligemma":
        return torch.where(kinds == 0, 0, -1)
    image = kinds == 1
    first = image & ~torch.cat([torch.zeros_like(image[:, :1]), image[:, :-1]], dim=1)
    return torch.where(image, first.cumsum(1), -1)


def _stages(drop_at, b: int) -> dict[int, Tensor]:
    return {k: kept[b] for k, kept in (drop_at or {}).items()}


def _kept(row: Row, keep, b: int, positions: str, change=None) -> Row:
    row = row if change is None else change(b, row)
    if keep is None:
        return row
    row = row.take(torch.isin(row.columns, keep[b]))
    return _renumbered(row) if positions == "renumber" else row


def _renumbered(row: Row) -> Row:
    return replace(row, ids=torch.arange(row.ids.shape[1]).expand_as(row.ids))


@torch.no_grad()
def _run(model, row: Row, drop_at: dict[int, Tensor], positions: str) -> tuple[Tensor, Tensor]:
    """Logits (T', V) of one sample and the columns (T',) they belong to."""
    lm = decoder_of(model)
    kinds = getattr(lm.config, "layer_types", None) or ["full_attention"] * lm.config.num_hidden_layers
    hidden = row.embeds * getattr(lm, "embedding_multiplier", 1)
    for i, (layer, kind) in enumerate(zip(lm.layers, kinds)):
        if i in drop_at:
            stay = torch.isin(row.columns, drop_at[i]) | (row.columns < 0)
            row, hidden = row.take(stay), hidden[stay]
            if positions == "renumber":
                row = _renumbered(row)
        if i in row.deepstack:
            hidden = hidden + row.deepstack[i]
        mask = None if kind == "linear_attention" else _mask(model, row, kind)
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=_tables(lm, row, kind))[0]
    return model.lm_head(lm.norm(hidden)) / getattr(lm.config, "logits_scaling", 1), row.columns


def _mask(model, row: Row, kind: str) -> Tensor:
    """Additive (1, 1, T, T): the past, the own block, and in sliding layers no more than a window of kept tokens."""
    n = torch.arange(len(row.columns))
    distance = n[:, None] - n[None]  # of query and key
    block = (row.blocks[:, None] == row.blocks[None]) & (row.blocks[:, None] >= 0)
    sees = distance >= 0
    if kind == "sliding_attention":
        near = distance < decoder_of(model).config.sliding_window
        # Gemma3 cuts blocks at the window, PaliGemma 2 lets a block see all of itself
        sees = (sees | block) & near if model.config.model_type == "gemma3" else (sees & near) | block
    else:
        sees = sees | block
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]


def _tables(lm, row: Row, kind: str):
    """Cosines and sines of the rotary embedding, for the layers of one kind."""
    ids = row.ids[:, None] if row.ids.shape[0] == 3 else row.ids
    x = row.embeds[None]
    return lm.rotary_emb(x, ids, kind) if lm.config.model_type == "gemma3_text" else lm.rotary_emb(x, ids)
