"""Tiny random models of the real transformers classes, one family each, and prompts as their processors make them.

>>> from tokenreduce.eval import tiny_models
>>> model = tiny_models.build("qwen2_vl")
>>> case = tiny_models.case("qwen2_vl", "mixed", model)
>>> case.visuals[1][0].columns
tensor([...])
"""

from __future__ import annotations

from typing import Any

import torch

# isort: off
from . import llava, qwen, tiles, gemma  # noqa: F401  (defining a family makes it known; tables keep this order)
from . import beside  # noqa: F401
from . import glm, grids, omni, qwen_towers, unheard  # noqa: F401
from . import pixtral, minicpm, packed, molmo, muse, pages, aria  # noqa: F401
from . import gemma4, gemma3n, lfm2_vl, kimi_k25, granite, ernie4_5_vl_moe  # noqa: F401
from . import lfm3_vl, cohere_compass, cosmos3_edge, muse_spark, hunyuan_vl, nemotron_h_omni, llama4, cosmos3_omni  # noqa: F401

# isort: on
from .common import BESIDE, FAMILIES, KNOWN, Case, Draw, Plan, Sample, Visual, assemble, fill, prompt

__all__ = [
    "BESIDE",
    "FAMILIES",
    "KINDS",
    "KNOWN",
    "Case",
    "Visual",
    "alone",
    "build",
    "case",
    "follow",
    "inputs",
    "joined",
    "kinds",
]

KINDS: dict[str, Plan] = {
    "single": ([["i0"]], None),
    "equal": ([["i0"], ["i0"]], None),
    "mixed": ([["i0"], ["i1", "i2"], []], "left"),
    "right": ([["i0"], ["i1", "i2"], []], "right"),
    "text": ([[], []], "left"),
    "video": ([["v"]], None),
    "image_and_video": ([["i1", "v"]], None),
    "videos": ([["v"], ["i0", "v"], []], "left"),
}


def kinds(key: str) -> list[str]:
    """The kinds of prompts a family takes."""
    family = KNOWN[key]
    if family.film_shape is None:
        return [k for k in KINDS if "video" not in k]
    return [k for k in KINDS if not family.apart or k not in ("image_and_video", "videos")]


def build(key: str, attn: str = "sdpa", seed: int = 0, *, mended: bool = True, **variant: Any) -> Any:
    """A model in evaluation mode, float32; ``variant`` replaces fields of its configuration.

    ``mended``: without the ``fault`` of its class. ``window=`` gives sliding layers, as of aya_vision, gemma3 and paligemma2,
    a short window.
    """
    family = KNOWN[key]
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # newline and class embeddings are drawn at construction
        model = family.model(family.config(**variant)).eval()
    model.set_attn_implementation(family.attention.get(attn, attn))
    fill(model, seed)
    family.finish(model)
    if mended:
        family.mend(model)
    return model


def case(key: str, kind: str | Plan, model: Any, seed: int = 0, *, plain: bool = False) -> Case:
    """Inputs of one of ``KINDS``, or of such a plan, as the processor of the family hands them over, and their pictures.

    ``plain``: of pictures whose every patch becomes a token.
    """
    family, draw = KNOWN[key], Draw(seed)
    plan, pad = {**KINDS, **family.plans}[kind] if isinstance(kind, str) else kind
    shapes = family.plain_shapes if plain and family.plain_shapes else family.shapes
    samples = []
    for names in plan:
        images = sum(name != "v" for name in names)
        samples.append(
            [
                family.film(model.config, family.film_shape, draw)
                if name == "v"
                else family.picture(model.config, shapes[int(name[1:])], images == 1, draw)
                for name in names
            ]
        )
    rows = [prompt(family, pieces, 5 + (b if pad else 0), draw) for b, pieces in enumerate(samples)]
    return assemble(family, rows, pad, model.config)


def inputs(key: str, kind: str | Plan, model: Any, seed: int = 0) -> dict:
    return case(key, kind, model, seed).inputs


def follow(key: str, inputs: dict, tokens: torch.Tensor) -> dict:
    """The same batch with text ``tokens`` (B, n) written behind it, as answers and later questions are."""
    kinds = {"attention_mask": 1, "mm_token_type_ids": 0, "moe_mm_token_type_ids": 0}
    kinds["token_type_ids"] = int(key.startswith("paligemma"))
    new = {name: torch.full_like(tokens, kind) for name, kind in kinds.items()} | {"input_ids": tokens}
    return {name: torch.cat([x, new[name]], dim=1) if name in new else x for name, x in inputs.items()}


def alone(key: str, case: Case, b: int) -> dict:
    """The inputs of sample ``b`` by itself, without padding."""
    return assemble(KNOWN[key], case.samples[b : b + 1], None, case.config).inputs


def joined(key: str, one: Case, two: Case) -> dict:
    """The inputs of two prompts of one sample each as one prompt, without padding."""
    (a,), (b,) = one.samples, two.samples
    owner = a.owner + [i if i < 0 else i + len(a.pieces) for i in b.owner]
    both = Sample(a.tokens + b.tokens, owner, a.pieces + b.pieces)
    return assemble(KNOWN[key], [both], None, one.config).inputs
