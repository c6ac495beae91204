"""What a wrapped model of the zoo must equal: the oracle, told what the model's own trace says was kept."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import oracle
import pytest
import torch
import transformers
import zoo_oracle

import tokenreduce as tr
from tokenreduce.adapters.registry import families
from tokenreduce.eval import tiny_models as zoo

TOLERANCE = 3e-5  # float32 logits of size 5; batched and single matrix products round differently
STEPS = 4


@cache
def model(key: str, attn: str = "sdpa", **variant):
    """One model of each kind per process; whoever wraps it unwraps it."""
    return zoo.build(key, attn, **variant)


#: keys of the zoo that an adapter serves
FAMILIES = [key for key in zoo.FAMILIES if zoo.FAMILIES[key].config().model_type in families()]
#: the same, and those whose pictures are no columns of the decoder's sequence
EVERY = [*FAMILIES, *(key for key in zoo.BESIDE if zoo.BESIDE[key].config().model_type in families())]
VIDEO = [key for key in FAMILIES if "video" in zoo.kinds(key)]


def told(trace: tr.Trace, mask: torch.Tensor) -> dict:
    """``keep``, ``drop_at`` and ``change`` for the oracle, of a prompt with ``mask`` (B, L), from its trace."""
    text = mask.bool() & ~trace.visual[:, : mask.shape[1]]  # without a cache the prompt has grown since

    def living(visual: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.cat([row.nonzero()[:, 0], kept]).sort().values for row, kept in zip(text, visual)]

    door = any(image.reached(-1) is not None for image in trace.images)

    def change(b: int, row: zoo_oracle.Row) -> zoo_oracle.Row:
        embeds, ids, deep = row.embeds.clone(), row.ids.clone(), {i: x.clone() for i, x in row.deepstack.items()}
        first = int(row.columns[0])
        for image in trace.images:
            stage = image.reached(-1) if image.sample == b else None
            if stage is None:
                continue
            for r, (seat, column) in enumerate(zip(stage.seats - first, oracle.carried(image.columns, stage))):
                members = image.columns[stage.assign == r] - first
                embeds[seat] = row.embeds[members].mean(0)
                for i, old in row.deepstack.items():
                    deep[i][seat] = old[members].mean(0)
                ids[:, seat] = row.ids[:, column - first]
        return replace(row, embeds=embeds, ids=ids, deepstack=deep)

    return {
        "keep": living(trace.kept) if door else None,
        "drop_at": {layer: living(kept) for layer, kept in trace.kept_at.items()},
        "change": change,
    }


def grown(told: dict, length: int, more: int) -> dict:
    """The same once ``more`` columns of text follow the ``length`` of the prompt."""
    new = torch.arange(length, length + more)

    def longer(columns):
        return [torch.cat([row, new]) for row in columns]

    keep, drop_at = told["keep"], told["drop_at"]
    return {
        **told,
        "keep": None if keep is None else longer(keep),
        "drop_at": {layer: longer(kept) for layer, kept in drop_at.items()},
    }


@torch.no_grad()
def forward(model, inputs: dict, *methods):
    """Output and trace of a wrapped forward pass."""
    with tr.wrapped(model, *methods):
        return model(**inputs), tr.trace(model)


def write(model, inputs: dict, *methods, steps: int = STEPS, **options):
    """Tokens written by the wrapped model, one list per row, and the trace of its prompt."""
    with tr.wrapped(model, *methods):
        out = model.generate(**inputs, **{"max_new_tokens": steps, "do_sample": False, **options})
        return out[:, inputs["input_ids"].shape[1] :].tolist(), tr.trace(model)


def same_logits(
    model, inputs: dict, logits: torch.Tensor, trace: tr.Trace, positions: str = "keep", tolerance: float = TOLERANCE
) -> None:
    what = told(trace, inputs["attention_mask"])
    expected = zoo_oracle.logits(model, inputs, **what, positions=positions)
    columns = zoo_oracle.columns(model, inputs, what["keep"], what["drop_at"])
    for row, at, want in zip(logits, columns, expected, strict=True):
        torch.testing.assert_close(row[at], want, atol=tolerance, rtol=0)


def same_tokens(model, inputs: dict, tokens: list, trace: tr.Trace, positions: str = "keep") -> None:
    what = told(trace, inputs["attention_mask"])
    assert tokens == zoo_oracle.greedy(model, inputs, len(tokens[0]), **what, positions=positions)


def needs_beams(model, inputs: dict) -> None:
    """Skip where the bare model itself fails to write beams, as the doctor says of it, too."""
    try:
        model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=3)
    except (ValueError, RuntimeError) as error:
        pytest.skip(f"the bare model of transformers {transformers.__version__} writes no beams: {error}")


def needs_a_cache(model, inputs: dict) -> None:
    """Skip where the bare model itself writes something else without a cache."""
    bare = [model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, use_cache=use) for use in (True, False)]
    if model.config.model_type == "paligemma" and not torch.equal(*bare):
        pytest.skip(
            f"the bare PaliGemma of transformers {transformers.__version__} reads a prompt anew each step, wrongly"
        )


def entering(model, inputs) -> tuple[torch.Tensor, tr.Trace]:
    """(B, W, D) what the first layer is given, and the trace of the wrapped ``model``."""
    seen = []
    handle = (
        model.get_decoder()
        .layers[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0], tr.trace(model)
