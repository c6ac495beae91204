"""What a method saves on models as published: FLOPs and KV bytes at a typical picture, without weights or a download.

python benchmarks/model_savings.py [--page]

Each model is built from its configuration on the meta device, where tensors have shapes and no values; what a token multiplies
is read off its modules, as reports of wrapped models read it (``tests/test_model_savings.py`` holds the two together). The
method acts at the projector, where every decoder layer sees fewer tokens; what it costs itself is left out. ``--page`` writes
docs/models.md from what is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from published_sizes import SIZES, Published, windows_of  # noqa: F401  (for those who count others)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import tokenreduce as tr
from tokenreduce.adapters.hooks.across_cost import AcrossCost
from tokenreduce.adapters.hooks.encoding_cost import BlockShape
from tokenreduce.adapters.hooks.kv_cache import num_bytes
from tokenreduce.adapters.registry import family_of
from tokenreduce.adapters.upstream.cross_attention import attention_across
from tokenreduce.budgets import Budget
from tokenreduce.eval.results import write_json
from tokenreduce.flops import matrices, products
from tokenreduce.unreduced import prefill_flops

HERE = Path(__file__).resolve().parent
DATA, PAGE = HERE / "results/model_savings.json", HERE.parent / "docs/models.md"
KEEPS = (1.0, 0.5, 0.25, 0.11)
TEXT = 64  # tokens of text beside the picture
BYTES = 2  # of a bfloat16


def build(size: Published) -> Any:
    """The model on the meta device."""
    cls = getattr(transformers, size.cls)
    with torch.device("meta"):
        return cls(cls.config_class(**size.config)).eval()


def tower_flops(family: Any, size: Published) -> int:
    tower, blocks = family.towers[size.tower], list(family.layers(size.tower))
    if not blocks:  # nothing of it is a transformer block: counted as it runs, on tensors without values
        pixels = torch.empty(1, 3, size.side, size.side, device=next(tower.parameters()).device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tower(pixels)
        return counter.get_total_flops()
    inside = {m for part in (*blocks, *family.projectors) for m in part.modules()}
    embedding = [n for module, n in matrices(tower) if module not in inside]
    full = set(getattr(tower, "fullatt_block_indexes", range(len(blocks))))
    total = 2 * sum(embedding) * size.patches
    for i, shape in enumerate(BlockShape.each(family, size.tower)):
        rows = size.rows if i in full or not size.windows else size.windows
        total += shape.flops(rows, rows)
    return total


def kv_bytes(model: Any, columns: int, across: int = 0) -> int:
    """Of ``columns`` in the sequence, and ``across`` rows that layers attend to beside it."""
    decoder = family_of(model).decoder
    cache, beside = DynamicCache(config=decoder.config), 0
    for i, layer in enumerate(decoder.layers):
        own = getattr(layer, "self_attn", None)
        other = attention_across(layer)
        if own is not None:
            keys, values = (torch.empty(1, 1, columns, p.out_features, device="meta") for p in (own.k_proj, own.v_proj))
            cache.update(keys.to(torch.bfloat16), values.to(torch.bfloat16), i)
        if other is not None:
            beside += BYTES * across * (other.k_proj.out_features + other.v_proj.out_features)
    return num_bytes(cache) + beside


def bill(model: Any, size: Published, keep: float, text: int = TEXT) -> dict[str, int]:
    """FLOPs by stage and KV bytes, of which ``keep`` of the picture's tokens are left."""
    family = family_of(model)
    kept = Budget(keep).count(size.tokens)
    projector = 2 * size.projected * sum(products(module) for module in family.projectors)
    found = {"tokens": kept, "tower": tower_flops(family, size), "projector": projector}
    join, columns = family.pictures_join, text + size.others + kept
    if join == "sequence":
        return found | {"prefill": prefill_flops(model, [columns])[0], "kv_bytes": kv_bytes(model, columns)}
    if join == "text_encoder":
        cost = AcrossCost.of(family.decoder, family.text_encoder)
        return found | {"prefill": cost.flops(1, 0, columns, columns), "kv_bytes": kv_bytes(model, 1, columns)}
    rows = size.others + kept
    cost = AcrossCost.of(family.decoder)
    return found | {"prefill": cost.flops(text, 0, rows, rows), "kv_bytes": kv_bytes(model, text, rows)}


def parameters(model: nn.Module) -> int:
    return sum({id(p): p.numel() for p in model.parameters()}.values())


def measured() -> dict[str, Any]:
    rows = []
    for size in SIZES:
        model = build(size)
        billions = parameters(model) / 1e9
        if abs(billions / size.parameters - 1) > 0.02:
            raise ValueError(f"{size.name} has {billions:.2f} billion parameters, published are {size.parameters}")
        rows.append(
            {
                "name": size.name,
                "model_type": model.config.model_type,
                "parameters": parameters(model),
                "picture": size.picture,
                "tokens": size.tokens,
                "others": size.others,
                "bills": {str(keep): bill(model, size, keep) for keep in KEEPS},
            }
        )
    versions = {"tokenreduce": tr.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    return {"text": TEXT, "cache": "bfloat16", "versions": versions, "models": rows}


HEAD = """# What a method would save on the model you have

Made by `python benchmarks/model_savings.py` from published configurations, without weights: floating-point operations of the
vision tower, the projector and the prefill, and bytes of keys and values after the prompt, for one picture and {text} tokens of
text. A multiply-add is two operations; the head over the vocabulary and the method itself are left out, and so is padding. The
method acts at the projector, so that all decoder layers work on fewer tokens; one that acts inside the language model saves
less, one that merges inside the tower also saves there. These are counts, not times: a prefill of a few hundred tokens does not
fill a large GPU, and answers are not part of it. The configurations were written down by hand
(`benchmarks/published_sizes.py`), not downloaded; the parameters they give agree within 2 % with those published.

*Whole prompt* is tower, projector and prefill together: where a tower is as dear as the prefill, fewer tokens help the cache
more than the time to the first token. Versions: {versions}.
"""


def page(data: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version.partition('+')[0]}" for name, version in data["versions"].items())
    shares = [f"{float(keep):.0%}" for keep in map(str, KEEPS)]
    head = ["model", "picture", "tokens", "tower", "projector", *(f"prefill {s}" for s in shares)]
    head += [f"whole prompt {s}" for s in shares[1:]]
    flops, caches = [], []
    for row in data["models"]:
        bills = [row["bills"][str(keep)] for keep in KEEPS]
        whole = [sum(b[part] for part in ("tower", "projector", "prefill")) for b in bills]
        name = f"[{row['name']}](https://huggingface.co/{row['name']})"
        flops.append(
            [name, row["picture"], f"{row['tokens']:,}", tera(bills[0]["tower"]), tera(bills[0]["projector"])]
            + [tera(b["prefill"]) for b in bills]
            + [f"{one / whole[0]:.0%}" for one in whole[1:]]
        )
        caches.append([name, f"`{row['model_type']}`", *(f"{b['kv_bytes'] / 2**20:.1f}" for b in bills)])
    return (
        HEAD.format(text=data["text"], versions=versions)
        + "\n## Operations, in TFLOP; the last columns as a share of the unreduced prompt\n\n"
        + table(head, flops)
        + "\n\n## Keys and values after the prompt, in MiB of bfloat16\n\n"
        + table(["model", "type", *shares], caches)
        + "\n\nLayers with a sliding window hold what fits into it. Llama 3.2 Vision holds its picture in the eight layers that "
        "attend across, Florence-2 in the rows that its decoder attends to.\n"
    )


def tera(flops: int) -> str:
    return f"{flops / 1e12:.3g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="write docs/models.md from the data that is there")
    if not parser.parse_args().page:
        write_json(DATA, measured())
    PAGE.write_text(page(json.loads(DATA.read_text())))
