"""What vLLM calls in each of its processes (entry point ``vllm.general_plugins``): names of classes, and nothing imported."""

from __future__ import annotations

from tokenreduce.adapters.upstream.vllm import choose_architecture, is_multimodal, register_models

PREFIX = "TokenReduce"
#: by vLLM's architecture, the class that reduces it
SERVED = {
    "InternVLForConditionalGeneration": "internvl:InternVL",
    "LlavaForConditionalGeneration": "llava:Llava",
    "LlavaNextForConditionalGeneration": "any_resolution:LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "any_resolution:LlavaOnevision",
    "Qwen2VLForConditionalGeneration": "qwen_vl:Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "qwen_vl:Qwen2_5VL",
    "Qwen3VLForConditionalGeneration": "qwen3_vl:Qwen3VL",
}
#: by vLLM's architecture, why it is not, where that is known
NOT_SERVED = {
    "Gemma3ForConditionalGeneration": "its image tokens attend to each other both ways, which vLLM's attention on a CPU does not "
    "do, reduced or not, so that its answers could not be held against transformers",
}
KEY = "tokenreduce"  #: in the model's configuration, where ``--hf-overrides`` puts it


def register() -> None:
    """Let vLLM know the classes, and take them where ``--hf-overrides`` names a method; any number of times."""
    register_models({PREFIX + name: f"{__package__}.{place}" for name, place in SERVED.items()})
    choose_architecture(chosen)


def chosen(architecture: str, config: object) -> str:
    """The architecture to load in place of ``architecture``, which is what the model's ``config`` names.

    Errors: ``ValueError`` where a method is asked for and the family is not served.
    """
    if getattr(config, KEY, None) is None or architecture.startswith(PREFIX) or not is_multimodal(architecture):
        return architecture
    if architecture not in SERVED:
        reason = f": {NOT_SERVED[architecture]}" if architecture in NOT_SERVED else ""
        raise ValueError(
            f"--hf-overrides names a method under {KEY!r}, but {architecture} is not served reduced in vLLM{reason}; allowed: "
            f"{', '.join(sorted(SERVED))}. Leave {KEY!r} out, or serve the model with transformers (docs/serving.md)"
        )
    return PREFIX + architecture
