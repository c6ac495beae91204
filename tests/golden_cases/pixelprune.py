"""PixelPrune: the choice of units, and what follows it in a wrapped Qwen3-VL whose tower has the weights of the vector."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

import tokenreduce as tr
from tokenreduce.layout import Layout, PixelUnit
from tokenreduce.methods.pixelprune import PixelPrune
from tokenreduce.tokens import VisualTokens

OWN = ("metric", "threshold", "scan", "anchored")


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    chosen = {name: params[name] for name in OWN}
    if params.one_of("function", ("units", "tower"), "units") == "tower":
        return tower(inputs, params, PixelPrune(tower_layer=params["tower_layer"], **chosen))
    units = inputs["units"]
    height, width, values = units.shape
    layout, unit = Layout(height, width), PixelUnit(1, values, 1, 1, 1)
    tokens = VisualTokens(units.flatten(0, 1)[None], layout, stage="pixels", amount=unit)
    plan = PixelPrune(**chosen).reduce(tokens).check(tokens)
    return {"keep_indices": (plan.assign[0] >= 0).nonzero()[:, 0]}


def tower(inputs: Meta[Tensor], params: Meta[Any], method: PixelPrune) -> dict[str, Tensor]:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    params.agree(image_mean=0.5, image_std=0.5)
    vision = params["vision_config"]
    words = {
        "vocab_size": 99,
        "hidden_size": vision["out_hidden_size"],
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }
    ids = {"image": params["image_token_id"], "vision_start": params["vision_start_token_id"]}
    ids["vision_end"] = params["vision_end_token_id"]
    config = Qwen3VLConfig(
        vision_config=vision, text_config=words, video_token_id=98, **{f"{name}_token_id": i for name, i in ids.items()}
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    visual, decoder = model.model.visual, model.model.language_model
    visual.load_state_dict(inputs.starting("w."))
    prompt = inputs["input_ids"][None]
    seen: dict[str, Any] = {}
    rows: list[int] = []

    def block(module: Any, args: Any, kwargs: Any) -> None:
        rows.append(len(args[0]))
        seen["cu_seqlens"] = kwargs["cu_seqlens"].long()
        seen["cos"], seen["sin"] = kwargs["position_embeddings"]

    def decode(module: Any, args: Any, kwargs: Any) -> None:
        seen.update(kwargs)

    with tr.wrapped(model, method), torch.no_grad():  # behind the hooks of the library
        handles = [layer.register_forward_pre_hook(block, with_kwargs=True) for layer in visual.blocks]
        handles.append(decoder.register_forward_pre_hook(decode, with_kwargs=True))
        grid = inputs["grid_thw"]
        model(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=inputs["pixel_values"],
            image_grid_thw=grid,
            mm_token_type_ids=(prompt == ids["image"]).long(),
        )
        for handle in handles:
            handle.remove()
        trace = tr.trace(model)
    sizes = [image.tokens_in for image in trace.images]
    first = [sum(sizes[:i]) for i in range(len(sizes))]
    units = torch.cat([image.kept() + start for image, start in zip(trace.images, first)])
    left = torch.ones(prompt.shape[1], dtype=torch.bool)
    left[prompt[0] == ids["image"]] = torch.isin(torch.arange(sum(sizes)), units)
    short = prompt[0][left]
    images = short == ids["image"]
    deep = seen["deepstack_visual_embeds"]
    return {
        "keep_units": units,
        "units_per_image": torch.tensor([len(image.kept()) for image in trace.images]),
        "rows_into_blocks": torch.tensor(rows),
        "last_block_cu_seqlens": seen["cu_seqlens"],
        "last_block_cos": seen["cos"],
        "last_block_sin": seen["sin"],
        "image_embeds": seen["inputs_embeds"][0][images],
        **{f"deepstack_{i}": x for i, x in enumerate(deep)},
        "input_ids": short,
        "position_ids": seen["position_ids"][-3:, 0],
        "rope_deltas": model.model.rope_deltas.flatten(),
    }
