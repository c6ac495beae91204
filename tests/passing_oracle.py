"""Tokens that pass by a decoder layer, by a plain loop: each sample alone, without cache, padding or mask functions."""

from __future__ import annotations

import torch
from torch import Tensor
from zoo_oracle import Row, _mask, _tables, caught

import tokenreduce as tr
from tokenreduce.eval.doctor.shortened import decoder_of


@torch.no_grad()
def run(model, row: Row, pictures: list[Tensor], routers: dict[int, Tensor], keep: float) -> Tensor:
    """Logits (T, V) of one sample: of the columns of each picture, the best by the router of a layer enter it, others do not.

    What the layer adds to those is multiplied by 1 + their score.
    """
    lm = decoder_of(model)
    kinds = getattr(lm.config, "layer_types", None) or ["full_attention"] * lm.config.num_hidden_layers
    hidden = row.embeds.clone()
    for i, (layer, kind) in enumerate(zip(lm.layers, kinds)):
        if i in row.deepstack:
            hidden = hidden + row.deepstack[i]
        scale, stay = torch.ones(len(hidden)), torch.ones(len(hidden), dtype=torch.bool)
        for columns in pictures if i in routers else []:
            at = torch.isin(row.columns, columns).nonzero()[:, 0]
            score = hidden[at] @ routers[i]
            stay[at] = False
            best = score.argsort(descending=True, stable=True)[: tr.Budget(keep).count(len(at))]
            stay[at[best]] = True
            scale[at] = 1 + score
        own = row.take(stay)
        given = {"attention_mask": _mask(model, own, kind), "position_embeddings": _tables(lm, own, kind)}
        made = layer(hidden[stay][None], **given)[0]
        after = hidden.clone()
        after[stay] = hidden[stay] + scale[stay, None] * (made - hidden[stay])
        hidden = after
    return model.lm_head(lm.norm(hidden))


def logits(model, inputs: dict, pictures: list[list[Tensor]], routers: dict[int, Tensor], keep: float) -> list[Tensor]:
    """Those of ``run`` for each sample of ``inputs``."""
    return [run(model, row, own, routers, keep) for row, own in zip(caught(model, inputs), pictures, strict=True)]


def greedy(model, inputs: dict, steps: int, pictures: list[list[Tensor]], routers, keep: float) -> list[list[int]]:
    """``steps`` tokens per sample, each with all before it computed anew."""
    found = []
    for row, own in zip(caught(model, inputs, generate=True), pictures, strict=True):
        following, tokens = int(row.ids[0, -1]) + 1, list[int]()
        for step in range(steps):
            tokens.append(int(run(model, row, own, routers, keep)[-1].argmax()))
            row = row.write(model.get_input_embeddings()(torch.tensor(tokens[-1])).detach(), following + step)
        found.append(tokens)
    return found
