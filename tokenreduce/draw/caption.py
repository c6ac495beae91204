"""Words under pictures, in fonts that fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WHITE, BLACK, INK = (255, 255, 255), (0, 0, 0), (34, 34, 34)


def captioned(picture: Image.Image, text: str, below: Image.Image) -> Image.Image:
    """``picture`` with lines of text and a key under it."""
    pad, font, line = 8, font_of(17, bold=True), 24
    lines = wrapped(text, font, picture.width - 2 * pad)
    out = Image.new("RGB", (picture.width, picture.height + pad + line * len(lines) + below.height), WHITE)
    out.paste(picture, (0, 0))
    out.paste(below, (0, out.height - below.height))
    pen = ImageDraw.Draw(out)
    for number, words in enumerate(lines):
        pen.text(
            (pad, picture.height + pad + line * number), words, fill=INK, font=fit(words, font, picture.width - 2 * pad)
        )
    return out


def wrapped(text: str, font: ImageFont.FreeTypeFont, room: float) -> list[str]:
    """``text`` in lines of at most ``room`` pixels, where its words allow that."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def font_of(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font that ships with matplotlib, so that pictures look the same everywhere."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def fit(text: str, font: ImageFont.FreeTypeFont, room: float) -> ImageFont.FreeTypeFont:
    """``font``, smaller where ``text`` is longer than ``room`` pixels, but never below 9."""
    length = font.getlength(text)
    return font if length <= room else font.font_variant(size=max(9, int(font.size * room / length)))


def one_size(texts: Sequence[str], font: ImageFont.FreeTypeFont, room: float) -> ImageFont.FreeTypeFont:
    """``font`` as small as the longest of ``texts`` needs it, for all of them."""
    return min((fit(text, font, room) for text in texts), key=lambda fitting: fitting.size, default=font)
