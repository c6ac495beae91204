"""The reference for virtual unmerging: a decoder whose rows are really repeated in front of attention, and averaged behind it.

Shares no code with the hooks: one sample, no padding, no cache; every written token runs all of it again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import zoo_oracle
from torch import Tensor

import tokenreduce as tr
from tokenreduce.eval.doctor.shortened import decoder_of


class Merged(NamedTuple):
    """One sample: its rows (W, D), the row that stands in each of its places (N,), and what is said of these.

    ``deep``: (W, D) to be added to the rows in front of a layer.
    """

    rows: Tensor
    place: Tensor
    whole: zoo_oracle.Row
    deep: dict[int, Tensor]


def merged(model, inputs: dict, method: tr.Method, generate: bool = False) -> list[Merged]:
    """What a decoder is handed of a merged tower whose tokens it reads once each, and where each row would stand."""
    got: dict = {}
    with tr.wrapped(model, method), torch.no_grad():
        handle = decoder_of(model).register_forward_pre_hook(lambda m, a, kwargs: got.update(kwargs), with_kwargs=True)
        model(**inputs)
        handle.remove()
        trace = tr.trace(model)
    found = []
    for b, whole in enumerate(zoo_oracle.caught(model, inputs, generate)):
        seat = torch.arange(inputs["input_ids"].shape[1])
        for image in trace.images:
            if image.sample == b:
                seat[image.columns] = image.seats()[image.standing_for()]
        seats, place = seat[whole.columns].unique(return_inverse=True)
        at, deep = slice(got["inputs_embeds"].shape[1] - len(seats), None), {}
        for layer, features in enumerate(got.get("deepstack_visual_embeds") or [], start=1):
            wide = torch.zeros_like(got["inputs_embeds"])
            wide[got["visual_pos_masks"]] = features
            deep[layer] = wide[b, at]
        found.append(Merged(got["inputs_embeds"][b, at], place, whole, deep))
    return found


@torch.no_grad()
def logits(model, sample: Merged) -> Tensor:
    """(N, V) the logits at every place."""
    lm, (rows, place, whole, deep) = decoder_of(model), sample
    tables, mask = zoo_oracle._tables(lm, whole, ""), zoo_oracle._mask(model, whole, "")
    share = torch.nn.functional.one_hot(place, len(rows)).to(rows)
    share = share / share.sum(dim=0)
    for i, layer in enumerate(lm.layers):
        rows = rows + deep.get(i, 0)
        told = {"position_embeddings": tables, "attention_mask": mask}
        given, _ = layer.self_attn(hidden_states=layer.input_layernorm(rows)[place][None], **told)
        rows = rows + share.T @ given[0]
        rows = rows + layer.mlp(layer.post_attention_layernorm(rows)[None])[0]
    return model.lm_head(lm.norm(rows))[place]


def following(model, sample: Merged, token: int, position: int) -> Merged:
    """The same with a written ``token`` behind it, at ``position`` on every axis."""
    embed = model.get_input_embeddings()(torch.tensor(token)).detach()
    return Merged(
        torch.cat([sample.rows, embed[None]]),
        torch.cat([sample.place, torch.tensor([len(sample.rows)])]),
        sample.whole.write(embed, position),
        {i: torch.cat([x, torch.zeros_like(x[:1])]) for i, x in sample.deep.items()},
    )


def greedy(model, sample: Merged, steps: int) -> list[int]:
    tokens, next_id = [], int(sample.whole.ids[0, -1]) + 1
    for step in range(steps):
        tokens.append(int(logits(model, sample)[-1].argmax()))
        sample = following(model, sample, tokens[-1], next_id + step)
    return tokens
