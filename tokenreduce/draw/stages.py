"""Which images and stages of a trace a picture is of, and how they are called in words."""

from __future__ import annotations

from tokenreduce.provenance import ImageTrace, PromptTrace, StageTrace


def images_of(trace: PromptTrace | ImageTrace, index: int, count: int = 1) -> list[ImageTrace]:
    """The ``count`` images of ``trace`` that one picture became."""
    images: list[ImageTrace] = getattr(trace, "images", [trace])
    if not 0 <= index < len(images):
        raise ValueError(f"index={index}; allowed: 0 to {len(images) - 1}, the images of this prompt")
    if index + count > len(images):
        raise ValueError(
            f"index={index}: the processor cuts this picture into {count} images, of which the trace holds "
            f"{len(images) - index} from there on; pass the whole trace and the first image of the picture, or, for a frame of "
            "a video, processor.video_processor"
        )
    return images[index : index + count]


def stages_at(image: ImageTrace, step: int | None, layer: int | None) -> int:
    """How many stages of ``image`` to show."""
    if step is not None and layer is not None:
        raise ValueError(f"step={step} and layer={layer}; give one of the two")
    if layer is not None:
        if layer < 0:
            raise ValueError(f"layer={layer}; allowed: a decoder layer, counted from 0")
        return sum(s.stage != "cache" and (s.stage != "llm" or (s.layer or 0) <= layer) for s in image.stages)
    if step is not None and not 0 <= step <= len(image.stages):
        raise ValueError(f"step={step}; allowed: 0 (every token) to {len(image.stages)}, the stages of this image")
    return len(image.stages) if step is None else step


def step_names(image: ImageTrace) -> list[str]:
    """What each ``step`` of ``draw`` shows, from 0 on: ``all tokens``, ``tome, vision block 0``, ``fastv, layer 2 on``."""
    return ["all tokens", *(f"{s.method}, {_where(s)}" for s in image.stages)]


def _where(stage: StageTrace) -> str:
    if stage.stage == "pixels":
        return "before the tower" if stage.layer is None else f"vision block {stage.layer} on"
    places = {
        "encoder": "vision block {}",
        "projector": "projector",
        "llm": "layer {} on",
        "cache": "cache of layer {}",
    }
    return places[stage.stage].format(stage.layer)


def describe(*images: ImageTrace, step: int | None = None, layer: int | None = None) -> str:
    """One line: which method left how many of how many tokens, for example ``hiprune: 36 of 144 tokens``.

    Several images are the tiles of one picture, counted together.
    """
    whole = sum(image.tokens_in for image in images)
    passed = [image.stages[: stages_at(image, step, layer)] for image in images]
    if not any(passed):
        return f"all {whole} tokens kept"
    longest = max(range(len(images)), key=lambda i: len(passed[i]))
    parts: dict[tuple[str, str], str] = {}  # a method that acts in many layers counts by its last one
    before = -1
    for n, stage in enumerate(passed[longest]):
        left = sum(
            len(own[min(n, len(own) - 1)].source) if own else image.tokens_in for image, own in zip(images, passed)
        )
        if left == before:  # nothing but roles were given
            continue
        before = left
        depth = stage.layer if stage.stage == "llm" else None
        place = "" if depth is None else f" after {depth} decoder layer{'s' * (depth != 1)}"
        parts[stage.method, stage.stage] = f"{stage.method}: {left} of {whole} tokens{place}"
    summaries = sum(int((own[-1].source < 0).sum()) for own in passed if own)
    return ", then ".join(parts.values()) + (f", {summaries} of them summaries" if summaries else "")


def summarize(*images: ImageTrace) -> str:
    """The same in a few words, for a caption: ``120 → 59 of 144 tokens``. Several images are counted together."""
    whole = sum(image.tokens_in for image in images)
    stages = max((image.stages for image in images), key=len)
    counts = [
        sum(len(own.stages[min(n, len(own.stages) - 1)].source) if own.stages else own.tokens_in for own in images)
        for n in range(len(stages))
    ]
    steps = [n for i, n in enumerate(counts) if i + 1 == len(counts) or stages[i].stage != stages[i + 1].stage]
    path = " → ".join(str(n) for i, n in enumerate(steps) if i == 0 or n != steps[i - 1])
    if not path:
        return f"all {whole} tokens"
    late = [stage.layer for stage in stages if stage.stage == "llm"]
    return f"{path} of {whole} tokens" + (f", layer {late[-1]} on" if late else "")
