"""Procedural scenes; numpy and Pillow only, no files, no network.

A scene is a 168 x 168 RGB picture: a dull grey texture with a few small saturated objects on it (eight
shapes, ten digits, eight letters, in eight colours). Object centres lie on a 7 px lattice. Everything about
an image follows from ``(split, seed, index)``, whatever else was generated before and in whichever process.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIDE = 168  # picture side, pixels
PATCH = 14  # patch side, pixels
GRID = SIDE // PATCH  # patches per side
LATTICE = 7  # object centres are multiples of this, pixels
SIZES = (16, 18, 20, 22)  # object heights, pixels
COVER = 0.06  # a patch belongs to an object that covers more than this share of it

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
CHARACTERS = tuple("0123456789efhkrtxz")
CLASSES = SHAPES + CHARACTERS
COLORS = {
    "red": (228, 32, 38),
    "green": (34, 190, 60),
    "blue": (40, 84, 240),
    "yellow": (244, 222, 36),
    "orange": (246, 134, 16),
    "purple": (142, 40, 214),
    "pink": (255, 128, 196),
    "cyan": (30, 222, 226),
}
COLOR_NAMES = tuple(COLORS)

# Objects per picture, both ends included. "crowd" trains the tower, without questions: colours repeat there.
SPLITS = {"train": (1, 8), "test": (1, 5), "hard": (8, 8), "crowd": (1, 12)}

# 5 x 7 dot-matrix glyphs, one row of bits per digit pair, top to bottom.
_GLYPHS = {
    "0": "0e 11 13 15 19 11 0e", "1": "04 0c 04 04 04 04 0e", "2": "0e 11 01 02 04 08 1f",
    "3": "1f 02 04 02 01 11 0e", "4": "02 06 0a 12 1f 02 02", "5": "1f 10 1e 01 01 11 0e",
    "6": "06 08 10 1e 11 11 0e", "7": "1f 01 02 04 08 08 08", "8": "0e 11 11 0e 11 11 0e",
    "9": "0e 11 11 0f 01 02 0c", "e": "1f 10 10 1e 10 10 1f", "f": "1f 10 10 1e 10 10 10",
    "h": "11 11 11 1f 11 11 11", "k": "11 12 14 18 14 12 11", "r": "1e 11 11 1e 14 12 11",
    "t": "1f 04 04 04 04 04 04", "x": "11 11 0a 04 0a 11 11", "z": "1f 01 02 04 08 10 1f",
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """An object: ``name`` from `CLASSES`, ``color`` from `COLORS`, ``size`` and ``center`` (x, y) in px."""

    name: str
    color: str
    size: int
    center: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is in it.

    ``pixels`` is (168, 168, 3) uint8; ``owner`` is (144,) int8 in raster order: the index into ``things`` of
    the object that covers most of the patch (more than 6 % of it), -1 for background.
    """

    pixels: np.ndarray
    things: tuple[Thing, ...]
    owner: np.ndarray
    index: int


def generator(split: str, seed: int, index: int, stream: str) -> np.random.Generator:
    """The source of every random choice in one stream, scene or questions, of a picture."""
    return np.random.default_rng([zlib.crc32(f"{split}/{stream}".encode()), seed, index])


@cache
def object_mask(name: str, size: int) -> np.ndarray:
    """Coverage of an object, (size, width) float32 in [0, 1]; characters are 5/7 as wide as high."""
    if name in _GLYPHS:
        rows = [int(row, 16) for row in _GLYPHS[name].split()]
        bits = np.array([[row >> (4 - column) & 1 for column in range(5)] for row in rows], np.uint8) * 255
        picture = Image.fromarray(np.kron(bits, np.ones((8, 8), np.uint8)))
        width = round(size * 5 / 7)
        return np.asarray(picture.resize((width, size), Image.Resampling.BOX), np.float32) / 255
    big = size * 8
    picture = Image.new("L", (big, big))
    draw = ImageDraw.Draw(picture)
    if name in ("circle", "ring"):
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
        if name == "ring":
            draw.ellipse((0.27 * big, 0.27 * big, 0.73 * big, 0.73 * big), fill=0)
    elif name == "square":
        draw.rectangle((0.06 * big, 0.06 * big, 0.94 * big, 0.94 * big), fill=255)
    elif name == "triangle":
        draw.polygon([(0.5 * big, 0), (big, 0.95 * big), (0, 0.95 * big)], fill=255)
    elif name == "diamond":
        draw.polygon([(0.5 * big, 0), (big, 0.5 * big), (0.5 * big, big), (0, 0.5 * big)], fill=255)
    elif name == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2, 0.21, 0.52) * big
        draw.polygon(
            list(zip(big / 2 + radii * np.cos(angles), 0.54 * big + radii * np.sin(angles), strict=True)),
            fill=255,
        )
    elif name == "cross":
        draw.rectangle((0.34 * big, 0, 0.66 * big, big), fill=255)
        draw.rectangle((0, 0.34 * big, big, 0.66 * big), fill=255)
    elif name == "heart":
        angle = np.linspace(0, 2 * np.pi, 100)  # the classical heart curve
        x = 16 * np.sin(angle) ** 3
        y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
        draw.polygon(list(zip((x + 16) * big / 32, (12 - y) * big / 29, strict=True)), fill=255)
    else:
        raise ValueError(f"no such class: {name!r}; choose from {CLASSES}")
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX), np.float32) / 255


@cache
def _textures(bank: str, count: int, side: int = 256) -> np.ndarray:
    """Dull backgrounds, (count, side, side, 3) uint8: bicubic noise in five octaves, a tint, strokes."""
    out = np.empty((count, side, side, 3), np.uint8)
    for number in range(count):
        rng = generator(bank, 0, number, "texture")
        field = np.zeros((side, side), np.float32)
        for octave in range(5):
            noise = rng.standard_normal((4 << octave, 4 << octave), np.float32)
            field += np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)) / (1 + octave)
        field = field / np.abs(field).max() * rng.uniform(10, 30) + rng.uniform(75, 115)
        tint = 1 + rng.uniform(-0.12, 0.12, 3)
        picture = Image.fromarray((field.clip(60, 130)[..., None] * tint).clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for _ in range(rng.integers(20, 91)):
            color = tuple(int(v) for v in (rng.uniform(55, 135) * (1 + rng.uniform(-0.1, 0.1, 3))).clip(0, 255))
            x, y = rng.uniform(0, side, 2)
            if rng.random() < 0.6:
                dx, dy = rng.uniform(-50, 50, 2)
                draw.line((x, y, x + dx, y + dy), fill=color, width=int(rng.integers(1, 5)))
            else:
                radius = rng.uniform(3, 13)
                draw.ellipse(
                    (x - radius, y - radius, x + radius, y + radius),
                    fill=color if rng.random() < 0.5 else None,
                    outline=color,
                )
        out[number] = np.asarray(picture)
    return out


def _background(split: str, rng: np.random.Generator) -> np.ndarray:
    train = split in ("train", "crowd")
    bank = _textures("train" if train else "test", 48 if train else 16)
    texture = bank[rng.integers(len(bank))]
    top, left = rng.integers(0, texture.shape[0] - SIDE + 1, 2)
    crop = texture[top : top + SIDE, left : left + SIDE]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop[::-1]
    return crop.astype(np.float32)


def _places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Up to ``count`` lattice points more than 21 px apart in x or y; nine always fit."""
    steps = np.arange(2, SIDE // LATTICE - 1)
    points = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    chosen: list[tuple[int, int]] = []
    for _ in range(count):
        if not len(points):
            break
        point = points[rng.integers(len(points))]
        chosen.append((int(point[0]) * LATTICE, int(point[1]) * LATTICE))
        points = points[np.abs(points - point).max(1) > 3]
    return chosen


def scene(split: str, seed: int, index: int) -> Scene:
    """Draw picture ``index`` of a split. Classes in a picture differ; so do colours, except in "crowd"."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {tuple(SPLITS)}, got {split!r}")
    low, high = SPLITS[split]
    rng = generator(split, seed, index, "scene")
    places = _places(rng, int(rng.integers(low, high + 1)))
    names = rng.permutation(len(CLASSES))[: len(places)]
    colors = (
        rng.permutation(8)[: len(places)] if len(places) <= 8 and split != "crowd" else rng.integers(0, 8, len(places))
    )
    canvas = _background(split, rng)
    cover = np.zeros((len(places), GRID * GRID), np.float32)
    things = []
    for number, (x, y) in enumerate(places):
        name, color = CLASSES[names[number]], COLOR_NAMES[colors[number]]
        size = int(rng.choice(SIZES))
        mask = object_mask(name, size)
        top, left = y - mask.shape[0] // 2, x - mask.shape[1] // 2
        area = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        paint = np.array(COLORS[color], np.float32) * rng.uniform(0.9, 1.05)
        canvas[area] += mask[..., None] * (paint - canvas[area])
        full = np.zeros((SIDE, SIDE), np.float32)
        full[area] = mask
        cover[number] = full.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).reshape(-1)
        things.append(Thing(name, color, size, (x, y)))
    canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(2, 9))
    owner = np.where(cover.max(0) > COVER, cover.argmax(0), -1).astype(np.int8)
    return Scene(canvas.clip(0, 255).astype(np.uint8), tuple(things), owner, index)
