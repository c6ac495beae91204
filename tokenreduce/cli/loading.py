"""Models by name: a local folder, a hub id, or the embedded demo model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def load(name: str, dtype: str, device: str, attention: str) -> tuple[Any, Any]:
    """Model in evaluation mode on its device, and processor."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    place = pick_device(device)
    if name == "demo":
        from tokenreduce.eval.demo import WEIGHTS, check_weights

        check_weights()
        name = str(WEIGHTS)
    check_family(pretrained(AutoConfig, name).model_type)
    processor = pretrained(AutoProcessor, name)
    kind = "float32" if dtype == "auto" and place.type == "cpu" else dtype
    model = pretrained(AutoModelForImageTextToText, name, dtype=kind, attn_implementation=attention)
    return model.eval().to(place), processor


def load_any(name: str, dtype: str, device: str, attention: str) -> tuple[Any, Any]:
    """``load``, and where ``name`` is an encoder by itself, that and what prepares its pictures."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    import tokenreduce as tr

    encoders = {row["model_type"] for row in tr.families() if row["kind"] == "encoder"}
    if name == "demo" or pretrained(AutoConfig, name).model_type not in encoders:
        return load(name, dtype, device, attention)
    place = pick_device(device)
    kind = "float32" if dtype == "auto" and place.type == "cpu" else dtype
    model = pretrained(AutoModel, name, dtype=kind, attn_implementation=attention)
    return model.eval().to(place), pretrained(AutoImageProcessor, name)


def empty_model(name: str) -> Any:
    """The model without its weights, on the device "meta": ``name`` is as in ``load``, or a ``config.model_type``."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

    import tokenreduce as tr

    if name == "demo":
        from tokenreduce.eval.demo import WEIGHTS

        name = str(WEIGHTS)
    kinds = {row["model_type"]: row["kind"] for row in tr.families()}
    config = AutoConfig.for_model(name) if name in kinds and not Path(name).is_dir() else pretrained(AutoConfig, name)
    alone = kinds.get(config.model_type) == "encoder"
    if not alone:
        check_family(config.model_type)
    with torch.device("meta"):
        return (AutoModel if alone else AutoModelForImageTextToText).from_config(config).eval()


def pretrained(cls: Any, name: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        what = (
            "cannot be loaded from this folder"
            if Path(name).is_dir()
            else "is no folder here and no reachable hub model"
        )
        raise ValueError(
            f"--model={name!r} {what} ({str(error).strip().splitlines()[0][:200]}); allowed: a folder with "
            "config.json, weights and processor files, a hub id such as llava-hf/llava-1.5-7b-hf when online, or demo"
        ) from error


def check_family(model_type: str) -> None:
    import tokenreduce as tr
    from tokenreduce.adapters.registry import why_not

    if model_type not in [row["model_type"] for row in tr.families() if row["kind"] == "VLM"]:
        raise ValueError(f"--model is of type {model_type!r}, which {why_not(model_type)} (See tokenreduce models)")


def pick_device(text: str) -> torch.device:
    import torch

    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(text)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device={text!r} cannot be used here; allowed: auto, cpu, cuda, cuda:1, mps") from None
    return place
