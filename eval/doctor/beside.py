"""The bare model with fewer rows of its pictures, where these are no columns of the decoder: what a wrapped one has to equal.

Two ways, for single samples: a decoder that attends across to rows of its pictures, and a text encoder that reads them. Shares
nothing with the hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenreduce as tr
from tokenreduce.eval import tiny_models

from .shortened import hooked

Change = Callable[[Tensor], Tensor]
ENTRIES = "encoder_hidden_states", "encoder_attention_mask"


@contextmanager
def fewer_rows(bare: Any, keep: Sequence[int], change: Change | None = None, earlier: int = 0) -> Iterator[None]:
    """Let the decoder of ``bare`` attend across to rows ``keep`` of its samples, which are alike.

    ``change`` (N, D) rewrites all rows before. ``earlier``: rows of pictures of earlier turns, which are counted first.
    """
    index = torch.tensor(keep)

    def enter(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs, states = dict(kwargs), kwargs.get("cross_attention_states")
        if states is not None:
            rows = states.reshape(len(kwargs["input_ids"]), -1, states.shape[-1])
            rows = rows if change is None else torch.stack([change(x) for x in rows])
            kwargs["cross_attention_states"] = rows[:, index[index >= earlier] - earlier]
        mask = kwargs["cross_attention_mask"][..., index]
        # before it was zeroed, a row of a token that sees nothing held the lowest number everywhere
        blind = (mask == torch.finfo(mask.dtype).min).all(-1, keepdim=True)
        blind = blind | (kwargs["full_text_row_masked_out_mask"] == 0)
        kwargs["cross_attention_mask"] = mask.masked_fill(blind, 0)
        kwargs["full_text_row_masked_out_mask"] = (~blind).to(mask.dtype)
        return args, kwargs

    with hooked(bare.get_decoder().register_forward_pre_hook(enter, with_kwargs=True)):
        yield


@contextmanager
def fewer_columns(
    bare: Any, keep: Sequence[int], change: Change | None = None, *, renumber: bool = False
) -> Iterator[None]:
    """Let the text encoder of ``bare`` read columns ``keep`` of its samples, which are alike; ``change`` (L, D) rewrites all."""
    index, language = torch.tensor(keep), bare.model.language_model
    table, ids = language.encoder.embed_positions, torch.arange(len(keep)) if renumber else index

    def enter(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        rows = kwargs["inputs_embeds"]
        rows = rows if change is None else torch.stack([change(x) for x in rows])
        return args, {**kwargs, "inputs_embeds": rows[:, index], "attention_mask": kwargs["attention_mask"][:, index]}

    def across(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, ENTRIES[1]: kwargs[ENTRIES[1]][:, index]}

    with hooked(
        language.encoder.register_forward_pre_hook(enter, with_kwargs=True),
        table.register_forward_hook(lambda *_: F.embedding(ids + 2, table.weight)[None]),  # BART begins at row 2
        language.decoder.register_forward_pre_hook(across, with_kwargs=True),
    ):
        yield


def rows_left(case: tiny_models.Case, trace: tr.Trace, b: int) -> list[int]:
    """Rows of sample ``b`` by itself that stay: the [CLS] of each tile that is one, and where the trace has tokens."""
    side = case.config.vision_config.image_size // case.config.vision_config.patch_size
    most, each = case.config.vision_config.max_num_tiles, side**2 + 1
    tiles = [int(piece.payload["tiles"]) for piece in case.samples[b].pieces]
    classes = [(i * most + t) * each for i, n in enumerate(tiles) for t in range(n)]
    return sorted([*classes, *seats(trace, b)])


def columns_left(case: tiny_models.Case, trace: tr.Trace, b: int) -> list[int]:
    """Columns of sample ``b`` by itself that stay: its text, the first token of its picture, and where the trace has tokens."""
    (piece,) = case.samples[b].pieces
    ids = torch.tensor(case.samples[b].tokens)
    visual = (ids == piece.placeholder).nonzero()[:, 0].tolist()
    return sorted([*(ids != piece.placeholder).nonzero()[:, 0].tolist(), visual[0], *seats(trace, b)])


def seats(trace: tr.Trace, b: int) -> list[int]:
    """Where the tokens of sample ``b`` sit that are left in front of the first layer."""
    return [seat for image in trace.images if image.sample == b for seat in image.seats(0).tolist()]


def merged(trace: tr.Trace, b: int) -> Change:
    """``change`` for methods that merge: a row becomes the mean of those it stands for."""

    def change(rows: Tensor) -> Tensor:
        out = rows.clone()
        for image in trace.images:
            stage = image.reached(-1) if image.sample == b else None
            if stage is not None:
                for r, seat in enumerate(stage.seats.tolist()):
                    out[seat] = rows[image.columns[stage.assign == r]].mean(0)
        return out

    return change


#: by tiny family: what is left of a sample, and how the bare model is given no more than that
WAYS: dict[str, tuple[Callable[..., list[int]], Callable[..., Any]]] = {
    "mllama": (rows_left, fewer_rows),
    "florence2": (columns_left, fewer_columns),
}


@contextmanager
def shortened(key: str, bare: Any, case: tiny_models.Case, trace: tr.Trace, b: int) -> Iterator[dict[str, Any]]:
    """The inputs of sample ``b`` by itself, for ``bare``, which is shown no more of its pictures than ``trace`` says."""
    left, fewer = WAYS[key]
    with fewer(bare, left(case, trace, b), merged(trace, b)):
        yield tiny_models.alone(key, case, b)
