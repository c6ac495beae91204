"""Questions about scenes with exact answers, fixed by ``(split, seed, index)`` as the scenes are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .scenes import CLASSES, COLOR_NAMES, SHAPES, SIDE, SPLITS, Scene, Thing, generator, scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
KINDS = ("color", "shape", "read", "exist", "count", "where")


@dataclass(frozen=True, eq=False)
class Question:
    """One question about one picture.

    ``answer`` is lower case, one or two words; ``index`` is the picture's index in its split; ``target`` is
    the index of the object asked about in ``scene.things``, -1 when the question is about none or about all
    of them.
    """

    image: Image.Image
    question: str
    answer: str
    kind: str
    index: int
    target: int
    scene: Scene


def _exists(color: str, name: str) -> str:
    return f"is there {'an' if color == 'orange' else 'a'} {color} {name}?"


def _candidates(things: tuple[Thing, ...], rng: np.random.Generator) -> dict[str, list[tuple[str, str, int]]]:
    """All questions about a scene by kind, as (question, answer, target)."""
    out: dict[str, list[tuple[str, str, int]]] = {kind: [] for kind in KINDS}
    for number, thing in enumerate(things):
        out["color"].append((f"what color is the {thing.name}?", thing.color, number))
        if thing.name in SHAPES:
            out["shape"].append((f"what shape is {thing.color}?", thing.name, number))
        else:
            out["read"].append((f"which character is {thing.color}?", thing.name, number))
        dx, dy = thing.center[0] - SIDE // 2, thing.center[1] - SIDE // 2
        if min(abs(dx), abs(dy)) > 10:  # near a middle line the answer would be arguable
            answer = f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}"
            out["where"].append((f"where is the {thing.name}?", answer, number))
    names, colors = {thing.name for thing in things}, {thing.color for thing in things}
    other_names = [name for name in CLASSES if name not in names]
    other_colors = [color for color in COLOR_NAMES if color not in colors]
    for number in rng.permutation(len(things))[:3]:
        thing = things[number]
        out["exist"].append((_exists(thing.color, thing.name), "yes", int(number)))
        case = rng.random()
        name, color = str(rng.choice(other_names)), thing.color
        if case < 0.45:  # the class is there, in another colour
            name, color = thing.name, str(rng.choice([c for c in COLOR_NAMES if c != thing.color]))
        elif case > 0.85 and other_colors:  # neither is there
            color = str(rng.choice(other_colors))
        out["exist"].append((_exists(color, name), "no", -1))
    shapes = sum(thing.name in SHAPES for thing in things)
    for what, number in (("objects", len(things)), ("shapes", shapes), ("characters", len(things) - shapes)):
        out["count"].append((f"how many {what} are there?", NUMBERS[number], -1))
    return out


def scene_questions(split: str, seed: int, picture: Scene, per_image: int) -> list[tuple[str, str, str, int]]:
    """Up to ``per_image`` questions about a scene as (kind, question, answer, target), kinds in turn."""
    rng = generator(split, seed, picture.index, "questions")
    pools = list(_candidates(picture.things, rng).items())
    queues = [[(kind, *pool[i]) for i in rng.permutation(len(pool))] for kind, pool in pools]
    queues = [queues[i] for i in rng.permutation(len(queues))]
    out: list[tuple[str, str, str, int]] = []
    while len(out) < per_image and any(queues):
        out.extend(queue.pop() for queue in queues if queue)
    return out[:per_image]


def questions(split: str, images: int | Iterable[int], seed: int = 0, per_image: int = 12) -> list[Question]:
    """Questions about pictures of a split, in picture order.

    ``images`` is a number of pictures (indices 0 .. images - 1) or the indices themselves; ``per_image`` is
    the most questions asked about one picture. Splits: "train" (1-8 objects), "test" (1-5), "hard" (exactly
    8); textures of "test" and "hard" are never used in training.
    """
    if split == "crowd" or split not in SPLITS:
        raise ValueError(f"split must be one of ('train', 'test', 'hard'), got {split!r}")
    out = []
    for index in range(images) if isinstance(images, int) else images:
        picture = scene(split, seed, index)
        image = Image.fromarray(picture.pixels)
        for kind, question, answer, target in scene_questions(split, seed, picture, per_image):
            out.append(Question(image, question, answer, kind, index, target, picture))
    return out
