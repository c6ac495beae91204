"""The attention probe: statistics from q and k of single modules, while everything runs on its own attention kernel."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

PREFIX = "tokenreduce|"
#: called with the module, query, key, mask, scale, and the borders of packed sequences in one call, else None
Listener = Callable[[nn.Module, Tensor, Tensor, Any, float, Tensor | None], None]


def _probed(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Attention function of a probed module: tell the listener q and k, then run the module's own attention."""
    probe = module._tokenreduce_probe
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    probe.listener(module, query, key, attention_mask, scale, kwargs.get("cu_seq_lens_q"))
    installed, module.config = module.config, probe.config
    try:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        base = ALL_ATTENTION_FUNCTIONS.get_interface(probe.config._attn_implementation, eager)
        return base(module, query, key, value, attention_mask, *args, **kwargs)
    finally:
        module.config = installed


class Probe:
    """Listens to one attention module by giving that module, and no other, a copy of its config.

    transformers looks the attention function up by ``module.config`` at every call; the copy names a function
    registered for this purpose. The name of the module's own implementation stays part of the key because some models
    look for ``flash`` in it.
    """

    def __init__(self, module: Any, listener: Listener) -> None:
        name = module.config._attn_implementation or "eager"
        AttentionInterface.register(PREFIX + name, _probed)
        self.module = module
        self.listener = listener
        self.config = module.config
        module._tokenreduce_probe = self
        module.config = copy.copy(module.config)
        module.config._attn_implementation_internal = PREFIX + name

    def remove(self) -> None:
        self.module.config = self.config
        del self.module._tokenreduce_probe
