"""What methods look at in a vision tower of vLLM: q, k and rows, taken where its modules pass them on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.tower_listener import attention_statistic
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.kernels.fingerprint import combine, fingerprint
from tokenreduce.projection import Projector
from tokenreduce.signals import (
    AttentionReceived,
    ClsAttention,
    ImageFingerprint,
    Keys,
    ProjectorInput,
    Signal,
    block_of,
)


class TowerSignals:
    """Values of ``needs``, per picture, of the pass of a tower that ran last.

    Args:
        family: facts of the same model in transformers, whose layouts and orders vLLM's tower shares.
        attentions: by block, the module that is called with q, k and v; ``projections``, the one that makes them, or k alone.
        entered: the module that rows of the projector enter; ``project``: what makes features of them.
    """

    def __init__(
        self,
        family: Family,
        needs: Sequence[Signal],
        attentions: Sequence[Any],
        projections: Sequence[nn.Module],
        entered: nn.Module,
        project: Any,
    ) -> None:
        self.family = family
        self.needs = needs
        self.heard: dict[Signal, list[Tensor]] = {}
        self.projecting = False
        self._way, self._entered = project, entered
        self.project = Projector(self._projected)
        for need in needs:
            block = block_of(need)
            if isinstance(need, (ClsAttention, AttentionReceived)) and block is not None:
                hook = partial(self._attends, need)
                attentions[family.heard_in(block)].register_forward_pre_hook(hook, with_kwargs=True)
            elif isinstance(need, Keys) and block is not None:
                attention = attentions[family.heard_in(block)]
                projections[family.heard_in(block)].register_forward_hook(partial(self._keys, need, attention))
            elif isinstance(need, ProjectorInput):
                entered.register_forward_pre_hook(partial(self._enters, need))

    def _attends(self, need: Signal, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query, key = (args[i] if len(args) > i else kwargs[name] for i, name in ((0, "query"), (1, "key")))
        cuts = kwargs.get("cu_seqlens", args[3] if len(args) > 3 else None)
        if query.ndim == 3:
            query, key = (x.unflatten(-1, (-1, module.head_size)) for x in (query, key))
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        value = attention_statistic(need, query, key, None, module.scale, cuts, None, packed=self.family.packs)
        self._note(need, value.flatten() if self.family.packs else value)

    def _keys(self, need: Keys, attention: Any, module: nn.Module, args: Any, output: Any) -> None:
        made = output[0] if isinstance(output, tuple) else output
        width = attention.num_heads * attention.head_size
        keys = (made if made.shape[-1] == width else made.chunk(3, dim=-1)[1]).float()
        if need.heads == "mean":
            keys = keys.unflatten(-1, (attention.num_heads, -1)).mean(dim=-2)
        self._note(need, keys.flatten(0, -2) if self.family.packs else keys)

    def _projected(self, rows: Tensor) -> Tensor:
        """A method's own ``rows`` through the projector, of which nothing is noted."""
        self.projecting = True
        try:
            return self._way(rows.to(next(self._entered.parameters()).dtype))
        finally:
            self.projecting = False

    def _enters(self, need: Signal, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.projecting:
            self._note(need, args[0].flatten(0, -2) if self.family.packs else args[0])

    def _note(self, need: Signal, value: Tensor) -> None:
        self.heard.setdefault(need, []).append(value)

    def of_pictures(self, call: TowerCall, pixels: Tensor, pictures: list[Picture]) -> list[dict[Signal, Tensor]]:
        """The signals of each of the ``pictures`` of a pass ``call`` that saw ``pixels``; they are not held any longer."""
        heard, self.heard = self.heard, {}
        found: dict[Signal, Any] = {}
        for need in self.needs:
            if isinstance(need, ImageFingerprint):
                prints = torch.cat([fingerprint(piece) for piece in self.family.pieces(call, pixels)])
                own = prints.split([picture.rows or 1 for picture in pictures])
                found[need] = [x[0] if len(x) == 1 else combine(x[None])[0] for x in own]
                continue
            rows = torch.cat(heard[need])
            if isinstance(need, ProjectorInput):
                found[need] = self.family.projected_per_picture(call, rows, pictures)
            else:
                found[need] = self.family.rows_per_picture(call, rows, pictures, block_of(need) or 0)
        return [{need: values[i] for need, values in found.items()} for i in range(len(pictures))]
