"""What stands behind ``tr_`` in the arguments of ``--model tokenreduce``, and which model of lmms-eval does the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenreduce import own_methods

from ..recipe import Recipe

# config.model_type: the model of lmms-eval that runs it, where tr_base names none
BASES = {
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "internvl": "internvl_hf",
}


@dataclass(frozen=True)
class Settings:
    """What stands behind ``tr_`` in the arguments of the model.

    ``base``: lmms-eval's name of the model that does the work; ``log``: file for the measurements, by default one in the
    output path of lmms-eval.
    """

    recipe: Recipe
    base: str | None = None
    log: Path | None = None

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
        """Ours and the base model's, once the modules and files of ``import``, joined by ``+``, are imported.

        Errors: those of ``Recipe.of``.
        """
        mine = {key[3:]: value for key, value in arguments.items() if key.startswith("tr_")}
        rest = {key: value for key, value in arguments.items() if not key.startswith("tr_")}
        base, log, method, imported = (mine.pop(name, None) for name in ("base", "log", "method", "import"))
        own_methods.load(str(imported).split("+") if imported else ())
        keep, as_video = mine.pop("keep", None), mine.pop("images_as_video", False)
        recipe = Recipe.of("" if method is None else str(method), keep, mine, as_video)
        return cls(recipe, base, None if log is None else Path(log)), rest


def base_name(base: str | None, pretrained: str) -> str:
    """lmms-eval's name of the model that runs ``pretrained``; by ``config.model_type`` where ``base`` is None."""
    if base is None:
        from transformers import AutoConfig

        kind = AutoConfig.from_pretrained(pretrained).model_type
        if kind not in BASES:
            raise ValueError(
                f"no base model is known for model_type={kind!r} of pretrained={pretrained!r}; name one of lmms-eval's with "
                f"tr_base, for example tr_base=llava_hf. Known by themselves: {', '.join(BASES)}"
            )
        base = BASES[kind]
    return base
