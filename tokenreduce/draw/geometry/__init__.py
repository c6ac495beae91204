"""Where in the original image each visual token looks: the processor's resizing, cropping and tiling undone.

The rules are those of the image processors of transformers; one file per idea: ``crops``, ``any_resolution``, ``tiles``.
Processors that squeeze the whole image onto one grid (SigLIP, PaliGemma, Gemma 3, dynamic resolution as in Qwen-VL) need no
rule.
"""
