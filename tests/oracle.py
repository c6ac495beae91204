"""The reference: the bare model, layer by layer, on a sequence from which tokens were physically taken out.

Shares no code with the hooks: one sample, no cache, no mask functions; plain causal attention written as a 4-D mask.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def embeddings(model, inputs: dict) -> Tensor:
    """(B, L, D) input embeddings with image features in place, from an unwrapped model."""
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    if "pixel_values" in inputs:
        features = torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
        place = (inputs["input_ids"] == model.config.image_token_id).unsqueeze(-1).expand_as(embeds)
        embeds = embeds.masked_scatter(place, features.to(embeds.dtype))
    return embeds


@torch.no_grad()
def run(
    model, embeds: Tensor, ids: Tensor, keep_at: dict[int, Tensor] | None = None, ids_at=None, cached=None
) -> Tensor:
    """Logits (T', V) of one sample ``embeds`` (T, D) at position ``ids`` (T,).

    ``keep_at[k]`` (T,) bool: tokens still there from layer k on. ``ids_at[k]`` (T',) position ids from layer k on.
    ``cached[l]`` (T,) bool: tokens that the *last* token may see in layer l (what a trimmed cache still holds).
    """
    lm = model.get_decoder()
    hidden, alive = embeds[None], torch.arange(len(embeds))
    positions = ids
    for i, layer in enumerate(lm.layers[: lm.config.num_hidden_layers]):
        if keep_at and i in keep_at:
            stay = keep_at[i][alive]
            hidden, alive, positions = hidden[:, stay], alive[stay], positions[stay]
        if ids_at and i in ids_at:
            positions = ids_at[i]
        length = hidden.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        if cached is not None:
            causal[-1] &= cached[i][alive]
        mask = torch.zeros(length, length).masked_fill(~causal, torch.finfo(torch.float32).min)[None, None]
        tables = lm.rotary_emb(hidden, position_ids=positions[None])
        hidden = layer(hidden, attention_mask=mask.to(hidden.dtype), position_embeddings=tables)
    return model.lm_head(lm.norm(hidden))[0]


def positions_of(inputs: dict, b: int, generate: bool) -> Tensor:
    """Position ids transformers itself uses for row b: columns in a forward pass, counted over real ones in generate."""
    mask = inputs["attention_mask"][b].bool()
    return (mask.long().cumsum(0) - 1).clamp_min(0) if generate else torch.arange(len(mask))


@torch.no_grad()
def greedy(model, embeds: Tensor, ids: Tensor, steps: int, keep_at=None, shift: int = 0, cached=None) -> list[int]:
    """``steps`` greedy tokens without a cache; new tokens continue at ``ids[-1] + 1 - shift``."""
    out: list[int] = []
    next_id = int(ids[-1]) + 1 - shift
    for _ in range(steps):
        grown = (
            None
            if keep_at is None
            else {k: torch.cat([v, torch.ones(len(embeds) - len(v), dtype=torch.bool)]) for k, v in keep_at.items()}
        )
        token = int(run(model, embeds, ids, grown)[-1].argmax())
        out.append(token)
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([token]))])
        ids = torch.cat([ids, torch.tensor([next_id])])
        next_id += 1
    return out


def carried(columns: Tensor, stage) -> list[int]:
    """The column whose position id each row of a ``stage`` has: that of its source; of a summary, that of its seat, or what is
    nearest to it between the rows around."""
    own = [int(columns[source]) if source >= 0 else None for source in stage.source]
    found = []
    for row, seat in enumerate(stage.seats.tolist()):
        before = [column for column in own[: row + 1] if column is not None]
        after = [column for column in own[row:] if column is not None]
        column = own[row]
        if column is None:
            column = min(max([seat, *before]), *after) if after else max([seat, *before])
        found.append(column)
    return found


def shortened(
    inputs: dict, b: int, bare: Tensor, trace, generate: bool = False
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Row b with everything dropped before the decoder taken out, from what the trace claims: embeddings (T, D),
    position ids (T,) and, per decoder layer, which of the T tokens are still there."""
    ids_row = positions_of(inputs, b, generate)
    embeds, ids = bare[b].clone(), ids_row.clone()
    alive = inputs["attention_mask"][b].bool().clone()
    for image in (i for i in trace.images if i.sample == b):
        stage = image.reached(-1)
        if stage is None:
            continue
        alive[image.columns] = False
        alive[stage.seats] = True
        for row, (seat, column) in enumerate(zip(stage.seats, carried(image.columns, stage))):
            embeds[seat] = bare[b][image.columns[stage.assign == row]].mean(0)
            ids[seat] = ids_row[column]
    keep_at = {}
    for k in trace.kept_at:
        stays = alive.clone()
        for image in (i for i in trace.images if i.sample == b):
            stays[image.columns] = False
            stays[image.seats(k)] = True
        keep_at[k] = stays[alive]
    return embeds[alive], ids[alive], keep_at
