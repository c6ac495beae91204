"""``--model tokenreduce``: which model of lmms-eval does the work, and what it is made with."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from lmms_eval.api.model import lmms

from tokenreduce.adapters.upstream.lmms_eval import model_class
from tokenreduce.adapters.upstream.lmms_eval_run import outlines_asked, prompt_as

from .failures import exit_on_error
from .limits import check_batch_size, check_likelihoods
from .reduced import Reduced
from .settings import BASES, Settings, base_name


def build(force_simple: bool, **arguments: Any) -> Any:
    """A model of lmms-eval with a reduction; ``arguments`` are those of the base class and ``tr_*``.

    Where the base class takes them and they are not given: ``device`` is a GPU if there is one, ``device_map`` the device
    (except for several processes on GPUs, where each takes its own), ``dtype`` float32 on a CPU.
    """
    settings, rest = Settings.taken_from(arguments)
    if rest.get("pretrained") == "demo":
        from ..demo import WEIGHTS

        rest["pretrained"] = str(WEIGHTS)
    if "pretrained" not in rest:
        raise ValueError("pretrained is missing; for example --model_args pretrained=llava-hf/llava-1.5-7b-hf, or demo")
    name = base_name(settings.base, str(rest["pretrained"]))
    check_batch_size(name, rest.get("batch_size", 1))
    if not force_simple or name in BASES.values():
        check_likelihoods(outlines_asked(), name)
    base = model_class(name, force_simple)
    known = inspect.signature(base).parameters
    device = str(rest.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    spread = int(os.environ.get("WORLD_SIZE", "1")) > 1 and device.startswith("cuda")
    defaults: dict[str, Any] = {"device": device}
    if not spread:
        defaults["device_map"] = device
    if device == "cpu":
        defaults["dtype"] = "float32"
    rest = {key: value for key, value in defaults.items() if key in known} | rest
    prompt_as(name)
    return type(f"Reduced{base.__name__}", (Reduced, base), {})(settings, name, rest)


class Chat(lmms):  # abstract: an instance is one of the base model's class, see __new__
    """``--model tokenreduce``."""

    is_simple = False

    def __new__(cls, **arguments: Any) -> Any:
        with exit_on_error():
            return build(cls.is_simple, **arguments)


class Simple(Chat):
    """``--model tokenreduce --force_simple``."""

    is_simple = True
