"""Pictures of what every method keeps at several budgets: one by one, and side by side in an overview."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 7  # methods side by side


def photograph() -> Image.Image:
    """A portrait of Rear Admiral Grace Hopper (US Navy, public domain) that ships with matplotlib, 512 x 606 RGB."""
    from matplotlib import cbook

    from tokenreduce.pictures import open_picture

    return open_picture(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def pictures(
    model: Any,
    processor: Any,
    stem: str,
    image: Image.Image,
    question: str,
    answer: str | None,
    methods: Sequence[str],
    keeps: Sequence[float | int],
) -> Iterator[tuple[str, Image.Image]]:
    """File name and picture for each method and budget below 1, then the overview ``overview_<stem>.png``."""
    import torch
    from PIL import Image as PILImage

    import tokenreduce as tr
    from tokenreduce.draw import draw, legend, seen_box, sheet, summarize

    from . import prompt, replies, right

    inputs = processor(images=[image], text=[prompt(question)], return_tensors="pt").to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    tiles: dict[tuple[str, float | int], tuple[Image.Image, str]] = {}
    roles: list[str] = []  # by number, for the key; methods that share a number share its colour
    for name in methods:
        for keep in keeps:
            with tr.wrapped(model, name, keep=keep), torch.inference_mode():
                out = model.generate(**inputs, do_sample=False)
                trace = tr.trace(model)
            (shown,) = trace.images
            title = summarize(shown)
            if answer is not None:
                (reply,) = replies(processor, out, inputs["input_ids"].shape[1])
                title = f'{title}\n"{reply}" {"✓" if right(reply, answer) else "✗"}'
            for stage in shown.stages:
                for number, role in enumerate(stage.role_names):
                    roles += [""] * (number + 1 - len(roles))
                    if role not in roles[number].split(" / "):
                        roles[number] = f"{roles[number]} / {role}".removeprefix(" / ")
            tiles[name, keep] = draw(trace, image, processor, caption=False, side=280), title
            yield f"{stem}_{name}_{keep}.png", draw(trace, image, processor)
    if not tiles:
        return
    heading = "Visual tokens left to the language model"
    if answer is not None:
        heading += f'. Question: "{question}" Right answer: "{answer}"'
    left, top, right_end, bottom = seen_box(image.size, processor)
    cut = left > 0 or top > 0 or right_end < image.width or bottom < image.height
    bands = []
    for start in range(0, len(methods), COLUMNS):
        band = methods[start : start + COLUMNS]
        places: list[tuple[Image.Image | None, str]] = []
        for number, keep in enumerate(keeps):
            first = {0: (image, "as it is"), 1: (legend(roles, cut), "")}.get(number, (None, ""))
            places += [first, *(tiles[name, keep] for name in band)]
        pair = [p[0] for p in places], [p[1] for p in places]
        rows = [f"keep\n{keep}" for keep in keeps]
        bands.append(sheet(*pair, ["picture", *band], rows=rows, heading="" if start else heading))
    whole = PILImage.new("RGB", (max(b.width for b in bands), sum(b.height for b in bands)), "white")
    for number, piece in enumerate(bands):
        whole.paste(piece, (0, sum(b.height for b in bands[:number])))
    yield f"overview_{stem}.png", whole
