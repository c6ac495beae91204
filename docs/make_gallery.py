"""Draw docs/gallery.md and its pictures with the functions that users call.

python docs/make_gallery.py

Photographs: Eileen Collins (NASA), the cat Chelsea and a cup of coffee, all public domain or CC0, from scikit-image.
Families with tiles are shown on the tiny random models of the tests, in whose hands a choice means nothing: there only
the geometry counts.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import skimage.data
import torch
from gallery_before_the_tower import before_the_tower
from PIL import Image

import tokenreduce as tr
from tokenreduce.draw import animate, draw, sheet, step_names, strip
from tokenreduce.eval import demo
from tokenreduce.eval.demo.measure import servable
from tokenreduce.eval.demo.video import video_prompt, video_questions
from tokenreduce.loading import model_inputs, picture_batch, quiet
from tokenreduce.methods.fastvggt import Shape
from tokenreduce.provenance import ImageTrace, StageTrace
from tokenreduce.registry import registry

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "images/gallery"
KEEP = 0.25
PAGE_KEEPS = (0.5, 0.25, 0.11)
VIDEO_KEEP = 0.3
ALONE = {
    "tempme": {"joins": (2, 2, 2)},
    "centerclip": {"joins": 4},
    "fastvggt": {"joins": 8},
}  # of eight frames, in the tower by itself
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


def speed() -> str:
    """How long a picture takes, from the committed measurement."""
    found = json.loads((HERE.parent / "benchmarks/results/drawing.json").read_text())
    medians, place = [row["median_s"] for row in found["rows"]], found["environment"]
    return (
        f"A picture of {found['side']} pixels takes {min(medians):.2f} to {max(medians):.2f} s, for grids of 576 to 4,096 tokens "
        f"(medians of {found['repeats']}, {place['cpu']}, `benchmarks/drawing.py`).\n"
    )


def traced(model, processor, image, *methods, question="how many objects are there?", **parameters):
    with tr.wrapped(model, *methods, **parameters):
        model.generate(**model_inputs(processor, image, question, model), max_new_tokens=2)
        return tr.trace(model)


def save(name: str, picture: Image.Image) -> str:
    """Write a picture with few colours; returns the line that shows it."""
    small = picture.quantize(220, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(PICTURES / f"{name}.png", optimize=True)
    return f"![{name.replace('_', ' ')}](images/gallery/{name}.png)\n"


def every_method(model, processor, photo: Image.Image) -> list[str]:
    """All methods on one photograph, and what those that rank were ranking by."""
    names = [row["name"] for row in tr.methods() if row["name"] in registry() and registry()[row["name"]].shortens]
    refused = servable(model, [name for name in names if "image" in registry()[name].media], [KEEP])
    names = [name for name in names if name not in refused]
    kept, ranked = [], []
    for name in names:
        trace = traced(model, processor, photo, name, keep=KEEP)
        kept.append((draw(trace, photo, processor, side=420), name))
        if any(stage.score is not None for stage in trace.images[0].stages):
            ranked.append((draw(trace, photo, processor, side=420, heat=True), name))
    return [
        "## Every method\n",
        f"A photograph at {KEEP:.0%} of the tokens: kept patches in their pixels, dropped ones dark, merged groups in their mean "
        f"colour, outlines by role. Methods for video leave a single picture alone. In this order: {', '.join(names)}."
        + "".join(f" Not here: {name} ({why.partition(';')[0]})." for name, why in refused.items())
        + "\n",
        save("every_method", sheet(*map(list, zip(*kept)), 6, tile=190)),
        "## What they rank by\n",
        f"The score each token was last ranked by, from dark (low) to bright (high): {', '.join(n for _, n in ranked)}.\n",
        save("scores", sheet(*map(list, zip(*ranked)), 6, tile=190)),
    ]


def save_page(name: str, made: Image.Image) -> None:
    small = made.quantize(220, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(HERE / f"images/methods/{name}.png", optimize=True)


def one_by_one(model, processor, scene) -> None:
    """What each method keeps of one scene at three budgets, as a picture for its page."""
    folder = HERE / "images/methods"
    folder.mkdir(parents=True, exist_ok=True)
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


def stages(model, processor, cat: Image.Image, scene) -> list[str]:
    trace = traced(model, processor, cat, "tome", keep=0.2)
    names = step_names(trace.images[0])
    blocks = [draw(trace, cat, processor, step=n, caption=False, side=420) for n in range(1, len(names))]
    both = traced(
        model, processor, scene.image, tr.FasterVLM(keep=60), tr.FastV(layer=2, keep=15), question=scene.question
    )
    layers = [draw(both, scene.image, processor, layer=n, side=420) for n in (0, 2)]
    return [
        "## Stage by stage\n",
        "Merging inside the vision tower, block by block (`step=`); and two methods one after the other, the second inside the "
        "language model (`layer=`).\n",
        save("blocks", sheet(blocks, names[1:], len(blocks), tile=220)),
        save("layers", sheet(layers, ["decoder layers 0 and 1", "from decoder layer 2 on"], 2, tile=WIDE)),
    ]


def methods_side_by_side(model, processor, scene) -> list[str]:
    inputs = model_inputs(processor, scene.image, scene.question, model)
    chosen = ["fastervlm", "hiprune", "fastv", "tome", "random"]
    grid = tr.compare(model, inputs, chosen, keep=[0.25, 0.06], image=scene.image, processor=processor, tile=190)
    text = f'`tr.compare(...)`: "{scene.question}" (right: {scene.answer}).\n'
    return ["## Side by side, with the answers\n", text, save("compare", grid)]


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
            or row["name"] in BEFORE_THE_TOWER
            or (names and row["name"] not in names)
        ):
            continue
        alone = ALONE.get(row["name"])
        made_by = method(keep=VIDEO_KEEP, **alone or {})
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
        small = made.quantize(220, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(HERE / f"images/methods/{row['name']}.png", optimize=True)


def video(model, processor) -> list[str]:
    trace, frames = filmed(model, processor, tr.HoliTom(keep=0.15, inner_keep=1.0))
    animate(trace, frames, processor, side=280).save(PICTURES / "video.gif", overwrite=True)
    return [
        "## Video\n",
        "A still camera, an object appears: what stands still is kept once. Tokens of a group in another frame are darker.\n",
        save("video", strip(trace, frames, processor, columns=8, side=170)),
        "![the same, animated](images/gallery/video.gif)\n",
    ]


def tiles(photo: Image.Image) -> list[str]:
    """Families that see a picture in several views or at its own resolution, on tiny random models."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import transformers.models.smolvlm.processing_smolvlm as spelling
    from zoo_processors import processor as processor_of
    from zoo_processors import prompt

    from tokenreduce.eval import tiny_models as zoo

    spelling.num2words = str  # a package for spelling out the number of frames
    drawn, names = [], ["llava_next", "internvl", "smolvlm", "qwen2_5_vl"]
    for name in names:
        image = photo.resize((96, 64) if name == "smolvlm" else (120, 80))
        processor, model = processor_of(name), zoo.build(name)
        made = processor(text=[prompt(name, ["i0"])], images=[[image]], padding=True, return_tensors="pt")
        with tr.wrapped(model, "random", keep=0.4), torch.no_grad():
            model(**made)
            drawn.append(draw(tr.trace(model), image, processor, side=420))
    wide = max(picture.width for picture in drawn)
    even = [Image.new("RGB", (wide, picture.height), "white") for picture in drawn]
    for page, picture in zip(even, drawn):
        page.paste(picture, (0, 0))
    return [
        "## Tiles in place\n",
        "A picture that the model sees whole and in tiles is drawn both ways, the tiles where they belong; padding, unpadding "
        "and the processor's resolution undone. Here with 40 % of the tokens drawn by lot, on tiny random models of the real "
        f"classes: {', '.join(names)}.\n",
        save("tiles", sheet(even, names, 2, tile=500)),
    ]


def main() -> None:
    quiet()
    PICTURES.mkdir(parents=True, exist_ok=True)
    model, processor = demo.load()
    astronaut, cat, coffee = (Image.fromarray(getattr(skimage.data, x)()) for x in ("astronaut", "chelsea", "coffee"))
    scene = next(q for q in demo.questions("test", 20) if q.kind == "color" and len(q.scene.things) >= 4)
    lines = [
        "# Gallery\n",
        "Drawn by `python docs/make_gallery.py` with the functions that you call: `tr.draw`, `tr.compare`, `tr.draw.strip`, "
        "`tr.draw.animate`. The model is the built-in demo model, trained on scenes like the ones below; on photographs its "
        "choices show the machinery, not judgement.\n",
        speed(),
        *every_method(model, processor, astronaut),
        *stages(model, processor, cat, scene),
        *methods_side_by_side(model, processor, scene),
        *video(model, processor),
        *tiles(coffee),
        "## To point at\n",
        "`tokenreduce inspect --model demo --method fastv --keep 0.25 --out page.html` writes one page without further files: a "
        "slider through stages and layers, and for the token under the pointer what stands for it, its role and its score; a "
        "video (`--video clip.mp4`) plays over a timeline of its tokens: left, joined to those of which frame, dropped. In a "
        "notebook, `tr.explore(model, processor, images, question)` is a panel with method, budget, stage and picture.\n",
    ]
    one_by_one(model, processor, scene)
    in_few_bits(model, processor, scene)
    by_content(model, processor, scene)
    by_layer(model, processor, scene, "dyvte", 0.5)
    by_layer(model, processor, scene, "videollm_mod", 0.2)
    by_training(model, processor, scene, "learned_selector")
    by_training(model, processor, scene, "query_compressor")
    videos_one_by_one(model, processor)
    before_the_tower(save_page)
    (HERE / "gallery.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
