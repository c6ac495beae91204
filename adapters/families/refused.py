"""Image-text-to-text types of transformers that no family serves: why, and what to do instead. Data, in one place.

A family that serves one of these types takes it off by being there (``registry.refused``).
"""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """Why models of ``types`` are refused, in a clause about one of them, and what to do ``instead``, as an imperative."""

    types: tuple[str, ...]
    reason: str
    instead: str


SMALLER = "hand its processor a smaller picture"
OTHER = "choose a served type (tokenreduce models)"
SPARSE = "run it unreduced, or a sibling with full or sliding attention"
LITTLE = "keep it as it is: a method would save a few dozen columns"

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        ("chameleon", "emu3", "apertus1p5"),
        "turns pictures into ids of its vocabulary: there is no vision tower at run time, hence nothing to rank tokens by",
        OTHER,
    ),
    Refusal(("fuyu",), "has no vision tower: a linear layer hands raw patches, row by row, to the decoder", SMALLER),
    Refusal(
        ("blip-2", "instructblip", "instructblipvideo"),
        "makes 32 queries of every picture in a Q-Former: they sit at no place in it, and there is little to gain",
        LITTLE,
    ),
    Refusal(
        ("kosmos-2",),
        "makes 64 latents of every picture, which sit at no place in it and are told by a mask instead of an id",
        LITTLE,
    ),
    Refusal(
        ("kosmos-2.5",),
        "makes 2,048 latents of every picture, which sit at no place in it, are told by a mask instead of an id, and enter "
        "a decoder that has no base model",
        SMALLER,
    ),
    Refusal(
        ("mistral_large4", "glm5_next", "hy_v4_vl", "dots3_note", "minimax_m3_vl"),
        "has sparse attention layers: a learned indexer with a cache of its own picks the keys, and would pick among tokens "
        "that are gone",
        SPARSE,
    ),
    Refusal(
        ("qwen4_exp",),
        "embeds n-grams of neighbouring ids and keeps the positions of the whole past in its cache: without some columns "
        "other words would be read",
        "run it unreduced, or qwen3_5",
    ),
    Refusal(
        ("inkling_mm_model", "inkling2", "inkling2_loop"),
        "has hybrid layers, whose cache holds keys and convolution states in one, and only the keys belong to tokens",
        SPARSE,
    ),
    Refusal(
        ("unlimited_ocr",),
        "keeps the whole first chunk beside a sliding window in a cache of its own kind, with masks that are made for it alone",
        "run it unreduced, or deepseek_ocr2",
    ),
    Refusal(
        ("t5gemma2",),
        "is an encoder-decoder, one attention of whose decoder spans its own tokens and those of the encoder, under a mask that "
        "is joined inside the model",
        "choose gemma3, or florence2 among encoder-decoders",
    ),
    Refusal(
        ("udop",),
        "is an encoder-decoder that joins patches and words by their boxes on the page and attends with biases of these boxes",
        "choose florence2",
    ),
    Refusal(
        ("pix2struct", "pp_formulanet", "vision-encoder-decoder"),
        "is an encoder-decoder that reads the picture alone: no prompt holds visual tokens",
        "wrap the vision encoder by itself, where tr.families() lists it as an encoder",
    ),
    Refusal(
        ("idefics", "evolla"),
        "attends across to latents of a perceiver, which sit at no place in a picture or protein and are few",
        "choose idefics2, idefics3 or mllama",
    ),
    Refusal(
        ("blip", "git"),
        "captions pictures with a text decoder that is no causal language model of transformers with placeholders in a prompt",
        OTHER,
    ),
    Refusal(("pi0",), "predicts the motions of a robot by flow matching, not text", OTHER),
    Refusal(
        ("diffusion_gemma",),
        "writes by denoising blocks: there is no prompt of a causal decoder to shorten",
        "choose gemma3 or gemma4",
    ),
    Refusal(("mistral4",), "reads text only: pictures never reach it", "choose mistral3"),
)

BY_TYPE = {model_type: refusal for refusal in REFUSALS for model_type in refusal.types}
