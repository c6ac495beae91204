"""Gates of random weights for the language models of ``models.llava``."""

from __future__ import annotations

import torch

from tokenreduce.methods.dyvte import Gates
from tokenreduce.weights import Base, Header, Weights

LAYERS, WIDTH, HIDDEN = 5, 32, 8


def gates(seed: int = 0, **base: object) -> Weights:
    """Of no model in particular, unless ``base`` says otherwise."""
    torch.manual_seed(seed)
    module = Gates(LAYERS, WIDTH, HIDDEN)
    said = {
        "model": "",
        "tower": "",
        "tower_width": None,
        "decoder_width": WIDTH,
        "decoder_layers": LAYERS,
        "tokens": None,
    }
    return Weights.made(Header("dyvte", 1, Base(**{**said, **base}), {"hidden": HIDDEN}, {"steps": 7}), module)
