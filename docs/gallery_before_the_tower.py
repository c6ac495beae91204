"""Pictures for the pages of methods that act before the vision tower, drawn on what they are made for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import tokenreduce as tr
from tokenreduce.draw import draw, sheet, strip

WIDE = 280  # pixels of one picture


def document() -> Image.Image:
    """A page of text with a table, as a screen shows it: flat colours, sharp edges."""
    page = Image.new("RGB", (448, 336), "white")
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, 448, 28), fill=(40, 60, 110))
    pen.text((12, 8), "Quarterly report", fill="white", font=ImageFont.load_default(16))
    for line in range(6):
        pen.text((24, 48 + 18 * line), "tokens of a page that is mostly white " + "ab " * (line % 3), fill="black")
    for row in range(4):
        for column in range(4):
            box = (24 + 84 * column, 196 + 28 * row, 24 + 84 * (column + 1), 196 + 28 * (row + 1))
            pen.rectangle(box, outline=(120, 120, 120), fill=(230, 236, 245) if row == 0 else "white")
            pen.text((box[0] + 8, box[1] + 8), str(17 * row + 5 * column), fill="black")
    return page


def before_the_tower(save_page: Callable[[str, Image.Image], None]) -> None:
    """What never enters a vision tower: of a page, and of a video in which one thing moves, on a tiny Qwen2.5-VL."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from zoo_processors import processor as processor_of
    from zoo_processors import prompt

    from tokenreduce.eval import tiny_models as zoo

    processor, model, page = processor_of("qwen2_5_vl"), zoo.build("qwen2_5_vl"), document()
    made = processor(text=[prompt("qwen2_5_vl", ["i0"])], images=[[page]], return_tensors="pt")
    drawn = []
    for method in (tr.PixelPrune(), tr.PixelPrune(keep=0.1), tr.Uniform(keep=0.5, at="pixels")):
        with tr.wrapped(model, method), torch.no_grad():
            model(**made)
            drawn.append(draw(tr.trace(model), page, processor, side=WIDE * 2))
    names = ["PixelPrune, threshold 0", "PixelPrune, keep=0.1", "uniform, at='pixels', keep=0.5"]
    save_page("pixelprune", sheet(drawn, names, 3, tile=WIDE))
    frames = []
    for t in range(8):
        frame = page.copy()
        ImageDraw.Draw(frame).ellipse((30 + 36 * t, 120, 80 + 36 * t, 170), fill=(200, 60, 40))
        frames.append(frame)
    made = processor(text=[prompt("qwen2_5_vl", ["v"])], videos=[[frames]], return_tensors="pt")
    with tr.wrapped(model, tr.RLT()), torch.no_grad():
        model(**made)
        save_page("rlt", strip(tr.trace(model), frames, processor.video_processor, columns=4, side=WIDE))
