"""What ``--hf-overrides`` asks for, what a request may ask for, and how a budget travels with its picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tokenreduce.adapters.registry import family_of
from tokenreduce.adapters.serving.vllm.plugin import KEY
from tokenreduce.adapters.visual_inputs import Picture
from tokenreduce.picture_selection import Selection
from tokenreduce.signals import AttentionReceived, ClsAttention, ImageFingerprint, Keys, ProjectorInput

LOG = logging.getLogger("vllm.tokenreduce")  # where vLLM's own words go
Keep = float | int | None
REQUEST = "tr_keep"  #: in ``mm_processor_kwargs`` of a request
SIGNALS = (ClsAttention, AttentionReceived, Keys, ProjectorInput, ImageFingerprint)


class Settings:
    """The method of a server, with the facts of its model: the same objects that ``tr.wrap`` uses.

    Args:
        config: of the model, with what ``--hf-overrides`` put into it.
        keeps_positions: whether survivors can keep their position ids, as on models with three axes of them; elsewhere vLLM
            counts tokens.

    Errors: ``ValueError`` / ``TypeError`` for a method or parameters that cannot be served, with the reason.
    """

    def __init__(self, config: Any, keeps_positions: bool) -> None:
        asked = getattr(config, KEY)
        if not isinstance(asked, Mapping) or not isinstance(asked.get("method"), str):
            raise ValueError(
                f"{KEY}={asked!r} in --hf-overrides; allowed: a method and its parameters, such as "
                f'{{"{KEY}": {{"method": "uniform", "keep": 0.25}}}}'
            )
        with torch.device("meta"):  # the facts of a family are read off a model; this one has no weights
            self.family = family_of(AutoModelForImageTextToText.from_config(config))
        own = "keep" if keeps_positions else "renumber"
        given = {"positions": own, **asked}
        name = given.pop("method")
        self.selection = Selection(name, facts=self.family.offers(), **given)
        for clause in self.selection.method.substitutes(self.family.offers()):
            LOG.warning("%s runs on this %s model with %s", name, config.model_type, clause)
        policy = self.selection.method.policy
        if policy != own:
            raise ValueError(
                f"method={name!r} with positions={policy!r} on a model of type {config.model_type!r} in vLLM, which "
                + ("takes ids of three axes off the tokens that are left" if keeps_positions else "counts its tokens")
                + f"; allowed: positions={own!r}, and rows in raster order. Both are what is taken when neither is said"
            )
        for need in self.selection.needs:
            if not isinstance(need, SIGNALS):
                raise ValueError(
                    f"method={name!r} looks at {need}, which is not taken off vLLM's towers; allowed: methods that look at "
                    f"features or at {', '.join(cls.__name__ for cls in SIGNALS)}"
                )

    def keep(self, keep: Keep) -> float | int:
        """The budget of a request that asks for ``keep``; None: the server's own. Errors are those of ``tr.wrap``."""
        found = self.selection.at(keep).keep
        assert isinstance(found, (float, int)), "text is refused"
        return found

    def columns(self, picture: Picture, keep: Keep) -> int:
        """Placeholders that a picture takes in the prompt."""
        return picture.columns - picture.layout.num_tokens + self.selection.count(picture.layout, keep)


def keeps_positions(config: Any) -> bool:
    """Whether the position ids of a model have several axes, which vLLM takes off the model."""
    text = config.get_text_config()
    return "mrope_section" in (getattr(text, "rope_parameters", None) or {})


_KNOWN: dict[
    int, tuple[Any, Settings]
] = {}  # by the identity of a configuration, which is held so that it stays its own


def settings_of(config: Any) -> Settings:
    """Those of a model, worked out once in a process."""
    if id(config) not in _KNOWN:
        _KNOWN[id(config)] = config, Settings(config, keeps_positions(config))
    return _KNOWN[id(config)][1]


def parted(given: Mapping[str, object]) -> tuple[Any, dict[str, object]]:
    """Of ``mm_processor_kwargs``: the budget that a request asks for, None for none, and the others.

    Errors: ``ValueError`` for another word that begins as ours do.
    """
    others = dict(given)
    keep = others.pop(REQUEST, None)
    wrong = next((name for name in others if name.startswith("tr_")), None)
    if wrong is not None:
        raise ValueError(
            f"mm_processor_kwargs holds {wrong!r}; allowed of a request: {REQUEST!r}, a fraction or a count. Methods and their "
            "parameters are the server's, said in --hf-overrides"
        )
    return keep, others


def field(modality: str) -> str:
    """The name under which budgets travel with the pictures of ``modality``."""
    return f"{REQUEST}_{modality}"


def written(keep: float | int, count: int) -> Tensor:
    """(count, 2) float64: a budget for each of ``count`` pictures, and whether it is a fraction."""
    return torch.tensor([[float(keep), float(isinstance(keep, float))]], dtype=torch.float64).repeat(count, 1)


def read(budget: Tensor) -> float | int:
    """The budget that a row of ``written`` holds."""
    value, fraction = budget.tolist()
    return value if fraction else int(value)
