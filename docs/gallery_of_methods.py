"""The pictures of the pages of single methods, each drawn in the way that shows what it does."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import torch
from gallery_before_the_tower import before_the_tower
from PIL import Image

import tokenreduce as tr
from tokenreduce.draw import draw, sheet, strip
from tokenreduce.eval import demo
from tokenreduce.eval.demo.measure import servable
from tokenreduce.eval.demo.video import video_prompt, video_questions
from tokenreduce.loading import model_inputs, picture_batch
from tokenreduce.methods.fastvggt import Shape
from tokenreduce.provenance import ImageTrace, StageTrace
from tokenreduce.registry import registry

PAGES = Path(__file__).resolve().parent / "images/methods"
PAGE_KEEPS = (0.5, 0.25, 0.11)
VIDEO_KEEP = 0.3
ALONE = {
    "tempme": {"joins": (2, 2, 2)},
    "centerclip": {"joins": 4},
    "fastvggt": {"joins": 8},
}  # of eight frames, in the tower by itself
BLOCKS = {"video_xl_2": {"chunk_size": 1, "topk": 2, "run": 9}}  # of a video of eight frames
BEFORE_THE_TOWER = ("pixelprune", "rlt")  # drawn on what they are made for
ELSEWHERE = (
    *BEFORE_THE_TOWER,
    "dymu",
    "dyvte",
    "learned_selector",
    "query_compressor",
    "videollm_mod",
)  # drawn in other ways than at three budgets
SHOWN_STEPS, SHOWN_BATCH = 40, 8  # of training, for a picture
WIDE = 280  # pixels of one picture


def traced(model, processor, image, *methods, question="how many objects are there?", **parameters):
    with tr.wrapped(model, *methods, **parameters):
        model.generate(**model_inputs(processor, image, question, model), max_new_tokens=2)
        return tr.trace(model)


def few_colours(picture: Image.Image, path: Path) -> None:
    """Write a picture with few colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = picture.quantize(220, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def save_page(name: str, made: Image.Image) -> None:
    """Write the picture of the page of method ``name``."""
    few_colours(made, PAGES / f"{name}.png")


def one_by_one(model, processor, scene) -> None:
    """What each method keeps of one scene at three budgets, as a picture for its page."""
    for row in tr.methods():
        if row["paper"] == "baseline" or "image" not in row["media"] or row["name"] in ELSEWHERE:
            continue
        if not registry()[row["name"]].shortens:
            continue
        keeps = [keep for keep in PAGE_KEEPS if not servable(model, [row["name"]], [keep])]
        drawn = [
            draw(traced(model, processor, scene.image, row["name"], question=scene.question, keep=keep), scene.image,
                 processor, caption=False, side=420)
            for keep in keeps
        ]  # fmt: skip
        made = sheet(drawn, [f"keep={keep}" for keep in keeps], len(drawn), tile=WIDE)
        save_page(row["name"], made)


def by_content(model, processor, scene) -> None:
    """What DyMU leaves of three scenes at one calibration, as a picture for its page."""
    trained = [question.image for question in {q.index: q for q in demo.questions("train", 64)}.values()]
    found = tr.calibrate(model, [picture_batch(processor, trained, model)], keep=0.25)
    scenes = sorted({q.index: q for q in demo.questions("test", 20)}.values(), key=lambda q: len(q.scene.things))
    drawn, said = [], []
    for own in (scenes[0], scenes[len(scenes) // 2], scenes[-1]):
        trace = traced(model, processor, own.image, "dymu", question=own.question, calibration=found)
        drawn.append(draw(trace, own.image, processor, caption=False, side=420))
        said.append(f"{len(trace.kept[0])} of {trace.images[0].layout.num_tokens} tokens")
    save_page("dymu", sheet(drawn, said, len(drawn), tile=WIDE))


def by_layer(model, processor, scene, name: str, keep: float) -> None:
    """What each decoder layer sees with a method that acts in several, for its page."""
    trace = traced(model, processor, scene.image, name, question=scene.question, keep=keep)
    layers = range(model.get_decoder().config.num_hidden_layers)
    drawn = [draw(trace, scene.image, processor, layer=layer, caption=False, side=420) for layer in layers]
    save_page(name, sheet(drawn, [f"layer {layer}" for layer in layers], len(drawn), tile=WIDE))


def in_few_bits(model, processor, scene) -> None:
    """Whose values VidKV protects, for two questions about one scene, as a picture for its page."""
    asked = [q.question for q in demo.questions("test", 20) if q.index == scene.index][:2]
    traces = [traced(model, processor, scene.image, "vidkv", question=question) for question in asked]
    drawn = [draw(trace, scene.image, processor, caption=False, side=420) for trace in traces]
    save_page("vidkv", sheet(drawn, asked, len(drawn), tile=WIDE))


def by_training(model, processor, scene, name: str) -> None:
    """What a method that learns keeps of one scene, or what its new rows read, trained for each budget on other scenes."""
    asked = demo.questions("train", 200, per_image=2)

    def data(step):
        own = [asked[(SHOWN_BATCH * step + i) % len(asked)] for i in range(SHOWN_BATCH)]
        text = [demo.prompt(question.question) for question in own]
        return dict(processor(images=[q.image for q in own], text=text, return_tensors="pt", padding=True))

    drawn = []
    for keep in PAGE_KEEPS:
        settings = tr.TrainingSettings(steps=SHOWN_STEPS)
        weights = tr.train(model, name, data, keep=keep, settings=settings).weights
        trace = traced(model, processor, scene.image, name, question=scene.question, weights=weights, keep=keep)
        heat = name == "query_compressor"
        drawn.append(draw(trace, scene.image, processor, heat=heat, caption=False, side=420))
    save_page(name, sheet(drawn, [f"keep={keep}" for keep in PAGE_KEEPS], len(drawn), tile=WIDE))


def filmed(model, processor, method) -> tuple[tr.Trace, list[Image.Image]]:
    """What ``method`` makes of a short video, and its frames."""
    found = next(v for v in video_questions(12) if v.kind == "color" and len(v.still.scene.things) >= 3)
    frames = list(found.frames)
    inputs = processor(images=frames, text=[video_prompt(found.question, len(frames))], return_tensors="pt")
    with tr.wrapped(model, method, images_as_video=True), torch.no_grad():
        model(**inputs)
        return tr.trace(model), frames


def filmed_alone(model, processor, method) -> tuple[tr.Trace, list[Image.Image]]:
    """The same of the vision tower by itself, for a method that goes on with several frames as one sequence."""
    found = next(v for v in video_questions(12) if v.kind == "color" and len(v.still.scene.things) >= 3)
    frames = list(found.frames)
    pixels = processor.image_processor(images=frames, return_tensors="pt")["pixel_values"]
    tower = copy.deepcopy(model.model.vision_tower)
    with tr.wrapped(tower, method), torch.no_grad():
        tower(pixels)
        return tr.trace(tower), frames


def filmed_around(model, processor, method) -> tuple[list[ImageTrace], list[Image.Image]]:
    """The same where tokens merge around attention alone: who merges in the first block that does so."""
    seen = []

    class Watched(type(method), register=False):
        def around(self, tokens):
            seen.append((tokens, super().around(tokens)))
            return seen[-1][1]

    given = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    trace, frames = filmed_alone(model, processor, Watched(**given))
    tokens, rows = seen[0]
    drawn = []
    for image, back in zip(trace.images, rows.back[:, tokens.prefix :]):
        own, assign = back.unique(return_inverse=True)
        n, shape = len(back), Shape(image.layout.frames, 0, image.layout.height, image.layout.width)
        is_hub = method.destinations(
            shape, method.chosen(shape)
        )  # rows sit at these, or else at the first that joined them
        place = torch.arange(n) + n * ~is_hub
        source = torch.full_like(own, 2 * n).scatter_reduce(0, assign, place, "amin") % n
        drawn.append(
            dataclasses.replace(
                image, stages=(StageTrace("encoder", tokens.layer, method.name, assign, source, source, None, ()),)
            )
        )
    return drawn, frames


def videos_one_by_one(model, processor, *names: str) -> None:
    """What each method for videos alone keeps of a short one, as a picture for its page; ``names``: of these methods."""
    for row in tr.methods():
        method = registry().get(row["name"])
        if (
            method is None
            or method.media != ("video",)
            or row["paper"] == "baseline"
            or row["name"] in (*BEFORE_THE_TOWER, "holitom")  # which has the gallery's video
            or (names and row["name"] not in names)
        ):
            continue
        alone = ALONE.get(row["name"])
        made_by = method(keep=VIDEO_KEEP, **(alone or BLOCKS.get(row["name"], {})))
        if row["name"] == "fastvggt":
            images, frames = filmed_around(model, processor, made_by)
        else:
            trace, frames = (filmed if alone is None else filmed_alone)(model, processor, made_by)
            images = trace.images
        each = len(frames) // len(images)
        parts = [strip(image, frames[i * each :], processor, columns=8, side=170) for i, image in enumerate(images)]
        made = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
        for part, top in zip(parts, itertools.accumulate((part.height for part in parts), initial=0)):
            made.paste(part, (0, top))
        save_page(row["name"], made)


def every_page(model, processor, scene) -> None:
    """A picture for the page of each method."""
    one_by_one(model, processor, scene)
    in_few_bits(model, processor, scene)
    by_content(model, processor, scene)
    by_layer(model, processor, scene, "dyvte", 0.5)
    by_layer(model, processor, scene, "videollm_mod", 0.2)
    by_training(model, processor, scene, "learned_selector")
    by_training(model, processor, scene, "query_compressor")
    videos_one_by_one(model, processor)
    before_the_tower(save_page)
