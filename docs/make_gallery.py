"""Draw docs/gallery.md and its pictures with the functions that users call.

python docs/make_gallery.py

Photographs: Eileen Collins (NASA), the cat Chelsea and a cup of coffee, all public domain or CC0, from scikit-image.
Families with tiles are shown on the tiny random models of the tests, in whose hands a choice means nothing: there only
the geometry counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import skimage.data
import torch
from gallery_of_methods import WIDE, every_page, few_colours, filmed, traced
from PIL import Image

import tokenreduce as tr
from tokenreduce.draw import animate, draw, sheet, step_names, strip
from tokenreduce.eval import demo
from tokenreduce.eval.demo.measure import servable
from tokenreduce.loading import model_inputs, quiet
from tokenreduce.registry import registry

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "images/gallery"
KEEP = 0.25


def speed() -> str:
    """How long a picture takes, from the committed measurement."""
    found = json.loads((HERE.parent / "benchmarks/results/drawing.json").read_text())
    medians, place = [row["median_s"] for row in found["rows"]], found["environment"]
    return (
        f"A picture of {found['side']} pixels takes {min(medians):.2f} to {max(medians):.2f} s, for grids of 576 to 4,096 tokens "
        f"(medians of {found['repeats']}, {place['cpu']}, `benchmarks/drawing.py`).\n"
    )


def save(name: str, picture: Image.Image) -> str:
    """Write a picture; returns the line that shows it."""
    few_colours(picture, PICTURES / f"{name}.png")
    return f"![{name.replace('_', ' ')}](images/gallery/{name}.png)\n"


def every_method(model, processor, photo: Image.Image) -> list[str]:
    """All methods on one photograph, and what those that rank were ranking by."""
    known = {name: cls for name, cls in registry().items() if cls.shortens and "image" in cls.media}
    names = [row["name"] for row in tr.methods() if row["name"] in known]
    refused = servable(model, names, [KEEP])
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
        f"colour, outlines by role. Methods for video alone are drawn on their pages. In this order: {', '.join(names)}."
        + "".join(f" Not here: {name} ({why.partition(';')[0]})." for name, why in refused.items())
        + "\n",
        save("every_method", sheet(*map(list, zip(*kept)), 6, tile=190)),
        "## What they rank by\n",
        f"The score each token was last ranked by, from dark (low) to bright (high): {', '.join(n for _, n in ranked)}.\n",
        save("scores", sheet(*map(list, zip(*ranked)), 6, tile=190)),
    ]


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
    every_page(model, processor, scene)
    (HERE / "gallery.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
