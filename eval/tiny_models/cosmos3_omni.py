"""The reasoner of Cosmos 3."""

from __future__ import annotations

from typing import Any

import transformers

from .qwen import Qwen3VL


class Cosmos3Omni(Qwen3VL, key="cosmos3_omni"):
    """As Qwen3-VL, of whose parts it is made."""

    brief = True
    model: Any = getattr(transformers, "Cosmos3OmniForConditionalGeneration", None)  # from 5.18

    def config(self, **variant: Any) -> Any:
        known = {name: value for name, value in super().config().to_dict().items() if name != "model_type"}
        return transformers.Cosmos3OmniConfig(**{**known, **variant})
