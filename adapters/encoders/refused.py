"""Vision encoders of transformers that no method can merge inside: why, and what to do instead. Data, in one place."""

from __future__ import annotations

from tokenreduce.adapters.families.refused import Refusal

OTHER = "choose an encoder whose blocks attend over all patches (tokenreduce models), or run it unreduced"

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        (
            "sam",
            "sam_vision_model",
            "sam_hq",
            "sam_hq_vision_model",
            "sam3",
            "sam3_vision_model",
            "sam3_vit_model",
            "vitdet",
        ),
        "attends within windows of its grid of patches, with biases or rotations of places in them: no patch can be missing",
        OTHER,
    ),
    Refusal(
        ("swin", "swinv2", "swin2sr", "donut-swin", "maskformer-swin"),
        "attends within windows of its grid of patches and joins neighbours between its stages: no patch can be missing",
        OTHER,
    ),
    Refusal(
        ("hiera", "sam2", "sam2_hiera_det_model", "sam2_vision_model", "pvt", "pvt_v2", "levit", "segformer"),
        "joins neighbouring patches of its grid between its stages: no patch can be missing",
        OTHER,
    ),
    Refusal(
        ("beit", "data2vec-vision"),
        "adds a bias by relative position to its attention, for every pair of patches of its whole grid",
        OTHER,
    ),
    Refusal(
        ("vit_mae",),
        "drops patches by itself, at random, to be trained by filling them in",
        "choose ViTModel, which loads the same weights",
    ),
    Refusal(
        ("dinov3_convnext", "convnext", "convnextv2", "resnet", "regnet", "mobilevit", "mobilevitv2", "cvt"),
        "is made of convolutions, which work on a whole grid",
        OTHER,
    ),
)

BY_TYPE = {model_type: refusal for refusal in REFUSALS for model_type in refusal.types}
