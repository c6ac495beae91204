"""The thinker of Qwen2.5-Omni: pictures as in Qwen2.5-VL; sounds stay whole, also where they take turns with a video."""

from __future__ import annotations

from tokenreduce.adapters.families.qwen2_5_vl import Qwen2_5VL


class Qwen2_5OmniThinker(Qwen2_5VL):
    model_types = ("qwen2_5_omni_thinker",)
    remarks = "as Qwen2.5-VL; sounds stay whole"
