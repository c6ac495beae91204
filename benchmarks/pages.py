"""Pictures of documents, drawn by program: a page of text, a screenshot, a chart; and one of which no surface is flat."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = ("token", "page", "unit", "frame", "text", "of", "a", "the")


def text_page(side: int) -> Image.Image:
    page = Image.new("RGB", (side, side), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for line in range(side // 34):
        if line % 7 != 6:
            words = " ".join(WORDS[(line + i) % len(WORDS)] for i in range(side // 70))
            pen.text((40, 30 + 32 * line), words, fill="black", font=font)
    return page


def screenshot(side: int) -> Image.Image:
    page = Image.new("RGB", (side, side), (245, 246, 248))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    pen.rectangle((0, 0, side, 56), fill=(36, 52, 92))
    pen.rectangle((0, 56, 196, side), fill=(226, 230, 238))
    for row in range(side // 112):
        pen.text((24, 84 + 56 * row), f"Folder {row}", fill=(40, 40, 40), font=font)
        pen.rounded_rectangle(
            (224, 84 + 112 * row, side - 28, 168 + 112 * row), 10, fill="white", outline=(208, 208, 214)
        )
        pen.text((252, 104 + 112 * row), f"Message {row}: the units of a page", fill=(30, 30, 30), font=font)
    return page


def chart(side: int) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side / 100, side / 100), dpi=100)
    axes = figure.add_subplot()
    x = np.arange(12)
    axes.bar(x, 3 + np.sin(x), color="tab:blue")
    axes.plot(x, 4 + np.cos(x), color="tab:red")
    axes.set_title("units that enter")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).resize((side, side))


def photograph(side: int) -> Image.Image:
    """No surface of it is flat: soft waves, and the noise of a sensor."""
    y, x = np.mgrid[:side, :side] / side
    waves = np.stack([np.sin(9 * x + 3 * y), np.cos(7 * y), np.sin(5 * (x + y))], axis=-1)
    noise = np.random.default_rng(0).normal(0, 3, waves.shape)
    return Image.fromarray((128 + 90 * waves + noise).clip(0, 255).astype(np.uint8))


PAGES = {"text": text_page, "screenshot": screenshot, "chart": chart, "photograph": photograph}
