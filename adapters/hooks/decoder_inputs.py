"""What the decoder is handed: found, reduced and put back among its arguments, every column of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks import deepstack
from tokenreduce.adapters.hooks.call_scope import CallScopes
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.joined_passes import joined_passes
from tokenreduce.adapters.hooks.merged_tokens import in_patches, merged_group, merged_in_segments
from tokenreduce.adapters.hooks.picture_pass import PicturePass
from tokenreduce.adapters.hooks.prompt_text import PromptText
from tokenreduce.adapters.hooks.sequence_packing import carried, changed_counts, write
from tokenreduce.adapters.hooks.tower_passes import Encoded
from tokenreduce.adapters.hooks.unit_selection import without_unseen
from tokenreduce.adapters.hooks.unmerged_rows import UnmergedRows
from tokenreduce.adapters.hooks.visual_token_positions import as_tiles, as_videos, place
from tokenreduce.adapters.upstream.cache import DynamicCache, cache_argument, given_cache
from tokenreduce.adapters.upstream.decoder import COLUMNS_ASKED_FOR, documents_row, layer_type
from tokenreduce.adapters.visual_inputs import Placed
from tokenreduce.groups import Image, ImageGroup
from tokenreduce.kernels.rows import take_rows
from tokenreduce.reduction import PositionPolicy
from tokenreduce.signals import Columns, Text


def locate(
    family: Family, visual: Tensor, video: Tensor, encoded: Encoded | None, images_as_video: bool
) -> list[Placed]:
    """The pictures of a chunk whose placeholders are ``visual`` (B, L) bool, ``video`` those of videos, in order."""
    if not bool(visual.any()):
        return []
    if encoded is not None:
        placed = place(visual, video, encoded.pictures, encoded.repeat)
    else:
        one = family.only_picture()
        placed = place(visual, torch.zeros_like(visual), [one] * (int(visual.sum()) // one.columns), 1)
    if family.tiled:
        placed = as_tiles(placed)
    return as_videos(placed) if images_as_video else placed


def drop_merged(reduced: DecoderPass, family: Family, encoded: Encoded, embeds: Tensor) -> bool:
    """Drop the duplicates that a merged tower returned: one token stays for each of its rows."""
    groups = merged(reduced, family, encoded, embeds)
    reduced.packings.repack(0, reduced.groups, groups)
    reduced.groups = groups
    return True


def unmerge(reduced: DecoderPass, family: Family, encoded: Encoded, shown: Tensor, kwargs: dict[str, Any]) -> None:
    """Let the rows of a merged tower stand at all places of their tokens, each the same in all of them."""
    groups = merged(reduced, family, encoded, shown)
    reduced.packings.visual_counts[0] = changed_counts(reduced.packings.visual_counts[0], reduced.groups, groups)
    reduced.groups = groups
    rows = reduced.unmerged = UnmergedRows.of(groups, reduced.real)
    kwargs["inputs_embeds"] = rows.spread(rows.narrow(shown))
    if reduced.beside:
        reduced.beside[0] = rows.spread(rows.narrow(reduced.beside[0]))
        deepstack.hand_over(reduced, kwargs)


def merged(reduced: DecoderPass, family: Family, encoded: Encoded, embeds: Tensor) -> list[ImageGroup]:
    """The images of ``reduced`` after what happened to them inside the tower, a token for each row that was left."""
    methods = [method for method, step in reduced.pipeline.steps if step.stage == "encoder"]
    in_order = all(method.output_order == "raster" for method in methods)
    policy: PositionPolicy = "renumber" if any(method.policy == "renumber" for method in methods) else "keep"
    for picture in encoded.pictures:
        if picture.pooled and family.unit == 1:
            raise ValueError(
                f"method={methods[0].name!r} merges patches inside the vision encoder, but this "
                f"{family.model.config.model_type} model pools the patches of this {picture.medium} after "
                "the encoder, so merged ones cannot be told apart; use a method of stage 'projector' or 'llm'"
            )
    groups: list[ImageGroup] = []
    if encoded.inside:
        for group in reduced.groups:
            inside = [encoded.inside[i] for m in group.members for i in reduced.behind[m]]
            shown = group.showing(embeds, beside=reduced.beside.get(0))
            groups += merged_in_segments(shown, inside, family.unit_places(group.layout), in_order, policy)
        return groups
    state = joined_passes(encoded.states)
    history = in_patches(state.history, family.tower_prefix)
    for group in reduced.groups:
        rows = [[r for i in reduced.behind[m] for r in encoded.rows[i]] for m in group.members]
        whole = len(rows[0]) * history[0].assign.shape[1]
        alike = state.alike and group.layout.num_tokens == whole
        groups += merged_group(
            group.showing(embeds, beside=reduced.beside.get(0)), history, rows, in_order, policy, alike
        )
    return groups


def drop_unseen(reduced: PicturePass, encoded: Encoded, embeds: Tensor) -> bool:
    """Drop the tokens whose units never ran, in whose places the tower returned others."""
    methods = [method for method, step in reduced.pipeline.steps if step.stage == "pixels"]
    policy: PositionPolicy = "renumber" if any(method.policy == "renumber" for method in methods) else "keep"
    groups: list[ImageGroup] = []
    for group in reduced.groups:
        behind = [reduced.behind[m] for m in group.members]
        groups += without_unseen(
            group.showing(embeds, beside=reduced.beside.get(0)),
            [[encoded.unseen[i] for i in own] for own in behind],
            [[encoded.pictures[i].layout.num_tokens for i in own] for own in behind],
            policy,
        )
    reduced.packings.repack(0, reduced.groups, groups)
    reduced.groups = groups
    return True


def reduce_projected(reduced: PicturePass, embeds: Tensor) -> bool:
    """Carry out the projector steps; whether anything changed."""
    if not reduced.pipeline.at("projector"):
        return False
    # tokens that a merged tower left behind come with their features
    beside = reduced.beside.get(0)
    shown = [g if g.features is not None else g.showing(embeds, beside=beside) for g in reduced.groups]
    reduced.hidden = (embeds, None)
    groups, changed = reduced.run("projector", None, shown)
    if changed:
        with reduced.pipeline.stopwatch(embeds.device):
            reduced.packings.repack(0, reduced.groups, groups)
    reduced.groups = groups
    return changed


def note_text(
    reduced: DecoderPass, family: Family, scopes: CallScopes, images: Sequence[Image], given: tuple[Any, Any]
) -> None:
    """Note what the text of this chunk is, where a method asks for it; ``given``: ``input_ids``, or else ``inputs_embeds``.

    Errors: ``ValueError`` where a picture is decided upon before the text that a method asks for has come.
    """
    wanted = [signal for signal in reduced.pipeline.listens if isinstance(signal, Text)]
    if not wanted and Columns() not in reduced.pipeline.listens:
        return
    visual, real = reduced.visual, reduced.packings.at(0).alive
    end = reduced.offset + visual.shape[1]
    later = [n for n in scopes.told_columns(len(visual)) or () if n > end]
    if later and any(signal.span != "before" for signal in wanted):
        raise ValueError(
            f"method={reduced.pipeline.methods[0].name!r} reads the text of the prompt, but this call brings a picture and "
            f"columns up to {end} of a prompt of {later[0]}; leave out prefill_chunk_size, or pass the rest of the prompt "
            "along with its picture"
        )
    labels = None if scopes.scope is None else scopes.scope.labels
    reduced.text = PromptText(
        visual,
        real,
        images,
        reduced.question_end,
        reduced.masks.documents,
        None if labels is None else labels[:, -visual.shape[1] :].to(real.device) != -100,
        None if all(signal.special for signal in wanted) else family.special_columns(*given),
    )


def uses_cache(decoder: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of ``decoder`` with ``kwargs`` fills a cache."""
    use_cache = kwargs.get("use_cache")
    return given_cache(kwargs) is not None or bool(decoder.config.use_cache if use_cache is None else use_cache)


def hand_over(reduced: DecoderPass, decoder: Any, kwargs: dict[str, Any], changed: bool) -> None:
    """Replace every argument of the decoder that has a column per token."""
    embeds, mask, cache = kwargs["inputs_embeds"], kwargs.get("attention_mask"), reduced.cache
    batch, length = embeds.shape[:2]
    packing = reduced.packings.by_first[0]

    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(length, device=embeds.device)[None] + reduced.offset
    if documents_row(decoder.config, positions) is not None:
        positions = positions[1:]
    positions = positions.expand(*positions.shape[:-2], batch, length)
    along = positions[0] if positions.ndim == 3 else positions
    reduced.positions.begin = along.gather(1, reduced.real.to(torch.uint8).argmax(dim=1, keepdim=True))
    last = reduced.real.shape[1] - 1 - reduced.real.flip(1).to(torch.uint8).argmax(dim=1, keepdim=True)
    reduced.positions.end = along.gather(1, last)[:, 0]
    if reduced.rest is not None:
        reduced.positions.end = reduced.rest.id_before(along, reduced.positions.end)
    if changed:
        columns = carried(packing, reduced.groups)
        positions = positions.gather(-1, columns.expand(*positions.shape[:-2], -1, -1))
        for name, value in kwargs.items():
            aligned = isinstance(value, Tensor) and value.shape[:2] == (batch, length)
            if aligned and name not in ("inputs_embeds", "attention_mask", "position_ids"):
                kwargs[name] = take_rows(value, packing.order)
        embeds = kwargs["inputs_embeds"] = write(take_rows(embeds, packing.order), packing, reduced.groups, "features")
        if reduced.beside:
            beside = take_rows(reduced.beside[0], packing.order)
            reduced.beside[0] = write(beside, packing, reduced.groups, "companions")
    if reduced.beside:
        deepstack.hand_over(reduced, kwargs)
    reduced.positions.given = positions
    if any(group.renumbered for group in reduced.groups):
        reduced.positions.renumber(0, torch.arange(packing.width, device=embeds.device).expand(batch, -1))
    ids = reduced.positions.ids(0)
    kwargs["position_ids"] = positions if ids is None else ids

    if cache is None and uses_cache(decoder, kwargs):
        cache = reduced.cache = reduced.masks.cache = DynamicCache(config=decoder.config)
        kwargs[cache_argument(type(decoder).forward)] = cache
    visible: Any = reduced.masks.visible(0)
    if visible is None and cache is None:
        # without a mask and without a cache, gaps between position ids would be taken for packed sequences
        visible = torch.ones(batch, packing.width, dtype=torch.bool, device=embeds.device)
    two_dimensional = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
    if reduced.masks.two_way is not None or reduced.masks.says_more or not two_dimensional:
        kinds = {layer_type(decoder.config, i): i for i in reversed(range(reduced.depth))}
        made = {kind: reduced.masks.mask(first, embeds) for kind, first in kinds.items()}
        first = made[layer_type(decoder.config, 0)]
        visible = made if isinstance(mask, dict) else visible if first is None else first
    kwargs["attention_mask"] = visible
    asked = kwargs.get(COLUMNS_ASKED_FOR, 0)
    if not isinstance(asked, int) or asked > 1 or (asked == 1 and reduced.pipeline.by_layer):
        kwargs[COLUMNS_ASKED_FOR] = 0  # the model's head takes them out of what comes back at full length
