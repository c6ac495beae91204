"""The key to a picture: swatches with counts of what occurs in it, outlines by role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from tokenreduce.draw.caption import BLACK, INK, WHITE, fit, font_of
from tokenreduce.draw.provenance_map import ProvenanceMap, provenance_map

if TYPE_CHECKING:
    from tokenreduce.provenance import ImageTrace, PromptTrace

Color = tuple[int, int, int]
Swatch = tuple[str, Color | None, Color]  # label, fill (None: hatched), outline

PALE, GRAY, DARK, TINT = (120, 120, 120), (150, 150, 150), (55, 55, 55), (176, 112, 72)
NEVER = (20, 78, 140)  # what did not enter the vision tower, at its brightest
AWAY = (97, 62, 40)  # TINT, darker
# Roles 1, 2, 3, ...: white, and colours of Okabe and Ito's palette, which readers with any common colour vision tell
# apart; the first role also has the thickest outline.
ROLE_COLORS = ((230, 159, 0), (86, 180, 233), (255, 255, 255), (204, 121, 167), (0, 158, 115))


def role_color(role: int) -> Color:
    """RGB outline of tokens of ``role``; 0, no role, is white."""
    return ROLE_COLORS[(role - 1) % len(ROLE_COLORS)] if role else WHITE


def legend(roles: Sequence[str] = (), cut_off: bool = False, width: int = 240) -> Image.Image:
    """A key to ``draw``, to be placed in a ``image_grid``; ``roles`` as ``StageTrace.role_names``, of which 0 is dropped."""
    plain = [name for i, name in enumerate(roles) if i and role_color(i) == WHITE]
    swatches: list[Swatch] = [(" / ".join(["kept", *plain]), GRAY, WHITE)]
    swatches += [(name, GRAY, role_color(i)) for i, name in enumerate(roles) if i and name not in plain]
    swatches += [("merged: the mean colour", TINT, WHITE), ("dropped", DARK, DARK)]
    return key(swatches + [("cut off, not seen", None, PALE)] * cut_off, width)


def swatches(
    trace: PromptTrace | ImageTrace, size: tuple[int, int], processor: Any = None, *, index: int = 0
) -> list[Swatch]:
    """What occurs in ``draw`` of an image of ``size`` (width, height), without counts; other arguments as there."""
    return swatches_of(provenance_map(trace, size, processor, index), size, counts=False)


def swatches_of(tokens: ProvenanceMap, size: tuple[int, int], counts: bool = True) -> list[Swatch]:
    """What occurs in a picture of ``size`` (width, height), with counts of original tokens unless ``counts`` is False."""

    def counted(text: str, which: np.ndarray) -> str:
        return f"{text} {int(which.sum())}" if counts else text

    owner, role, merged = tokens.owner, tokens.role, tokens.merged
    single = (owner >= 0) & ~merged
    found: list[Swatch] = []
    for number in sorted(set(role[single].tolist())):
        label = tokens.names[number] if 0 < number < len(tokens.names) else "kept"
        found.append((counted(label, single & (role == number)), GRAY, role_color(number)))
    if merged.any():
        groups = len(set(owner[merged].tolist()))
        text = f"{int(merged.sum())} merged into {groups} means" if counts else "merged: the mean colour"
        found.append((text, TINT, WHITE))
    if tokens.away.any():
        text = f"{int(tokens.away.sum())} of them with a token" if counts else "merged with a token"
        found.append((f"{text} of another frame", AWAY, AWAY))
    gone = (owner < 0) & ~tokens.unseen
    if gone.any():
        found.append((counted("dropped", gone), DARK, DARK))
    if tokens.unseen.any():
        found.append((counted("never ran", tokens.unseen), NEVER, NEVER))
    low, high = tokens.boxes[:, :2].min(axis=0), tokens.boxes[:, 2:].max(axis=0)
    if (low > 0.5).any() or (high < np.array(size) - 0.5).any():
        found.append(("cut off, not seen", None, PALE))
    return found


def key(swatches: Sequence[Swatch], width: int) -> Image.Image:
    """Swatches with their labels, from left to right and then in further lines, on white."""
    font, pad, line = font_of(14), 8, 24
    places, x, y = [], pad, 0
    for label, _, _ in swatches:
        length = 38 + round(font.getlength(label))
        if x > pad and x + length > width:
            x, y = pad, y + line
        places.append((x, y))
        x += length
    out = Image.new("RGB", (width, y + line + pad // 2), WHITE)
    pen = ImageDraw.Draw(out)
    for (x, y), (label, fill, outline) in zip(places, swatches):
        pen.rectangle((x, y + 2, x + 15, y + 17), fill=fill or (225, 225, 225), outline=BLACK)
        if fill is None:
            pen.line((x + 1, y + 15, x + 8, y + 4), fill=outline, width=2)
            pen.line((x + 7, y + 15, x + 14, y + 4), fill=outline, width=2)
        elif outline != fill:
            pen.rectangle((x + 1, y + 3, x + 14, y + 16), outline=outline, width=3)
        pen.text((x + 21, y), label, fill=INK, font=fit(label, font, width - x - 24))
    return out
