"""The main job, ``tokenreduce demo``: every method at several budgets on the demo model; tables, JSON, pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenreduce.timing import REPEATS

from ..results import claim, environment, write_json
from .bench import BATCH, TIMED, Bench, Row, measure, servable
from .scenes import questions
from .video import VideoRow, answer_videos, arms, video_questions

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.table import Table
    from torch import nn

KEEPS = (1.0, 0.5, 0.25, 0.11)
HARD_KEEP = 8  # tokens for eight objects: 5.6 % of 144
PER_IMAGE = 6  # questions about one picture, one of each kind where the picture allows it
VIDEO_KEEP = 0.15
VIDEO_ARMS = ("all tokens", "uniform per frame", "holitom")
COLUMNS = 7  # methods side by side in a contact sheet


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows of one split as a rich table of 80 columns, a section per method."""
    from rich import box
    from rich.table import Table as RichTable

    made = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    made.add_column("method", no_wrap=True)
    heads = ("tokens\n(mean of\nlayers)", "accuracy %\n[95 %\ninterval]", "prefill\nGFLOPs")
    for head in (*heads, "prefill\nspeed-up\n[range]", "first\ntoken\nsp.-up", "KV\ncache\nKiB"):
        made.add_column(head, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if last not in (None, row.method) and len({r.keep for r in rows[1:]}) > 1:
            made.add_section()
        low, high = (100 * x for x in row.interval)
        speed, first = row.prefill_speedup, row.method == "unreduced"
        made.add_row(
            row.method if row.method != last else "",
            f"{row.tokens}" + (f" ({row.layer_average:.0f})" if row.layer_average != row.tokens else ""),
            f"{100 * row.accuracy:.1f} \\[{low:.0f}, {high:.0f}]",
            f"{row.prefill_gflops:.3f}",
            "1" if first else f"{speed.median:.2f} \\[{speed.low:.1f}, {speed.high:.1f}]",
            "1" if first else f"{row.first_token_speedup.median:.2f}",
            f"{row.kv_kib:,.0f}",
            style="bold" if first else None,
        )
        last = row.method
    return made


def video_table(rows: Sequence[VideoRow]) -> Table:
    """The rows of the videos as a rich table."""
    from rich import box
    from rich.table import Table as RichTable

    title = f"video: 8 frames as images, {VIDEO_KEEP:.0%} of the tokens, {rows[0].questions} questions"
    made = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for head in ("way", "tokens\n(mean of\nlayers)", "accuracy %\n[95 %\ninterval]"):
        made.add_column(head, justify="left" if head == "way" else "right", no_wrap=True)
    for row in rows:
        low, high = (100 * x for x in row.interval)
        tokens = f"{row.tokens_last_layer:,} ({row.tokens_layer_average:,.0f})"
        made.add_row(row.arm, tokens, f"{100 * row.accuracy:.1f} \\[{low:.0f}, {high:.0f}]")
    return made


def photograph() -> Image.Image:
    """A portrait of Rear Admiral Grace Hopper (US Navy, public domain) that ships with matplotlib, 512 x 606 RGB."""
    from matplotlib import cbook
    from PIL import Image

    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        return photo.convert("RGB")


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
    """File name and picture for each method and budget below 1, then the contact sheet ``overview_<stem>.png``."""
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


@contextmanager
def _progress(console: Console | None, total: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar with the time left on ``console``; yields ``advance(what, steps)``."""
    if console is None:
        yield lambda what, steps: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("questions"),
    )
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("loading", total=total)
        yield lambda what, steps: bar.update(task, description=what, advance=steps)


def run(
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    keeps: Sequence[float | int] = KEEPS,
    images: int | None = None,
    seed: int = 0,
    repeats: int = REPEATS,
    loaded: tuple[nn.Module, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure, draw and write everything into ``out``; returns what ``results.json`` holds.

    Args:
        out: folder for ``results.json`` and the pictures; made if needed. Files of an earlier run are replaced, others
            never.
        methods: names; None takes all that the demo model can serve.
        keeps: budgets, fractions or counts.
        images: pictures of the split "test", up to 6 questions each; None keeps the run short: 1600 over the number of
            table rows, between 8 and 40. The split "hard" gets half as many.
        seed: of the pictures and questions.
        repeats: timed rounds per method.
        loaded: (model, processor) instead of ``demo.load()``.
        console: where tables and progress go; None is silent.

    Errors: ``ValueError`` for unknown methods, budgets out of range, or files in ``out`` that this command did not
        write; ``FileNotFoundError`` when the demo weights are missing.
    """
    import tokenreduce as tr

    if images is not None and images < 1:
        raise ValueError(f"images={images}; allowed: an int >= 1, the number of pictures")
    if not keeps:
        raise ValueError("keeps is empty; give at least one budget, for example 0.25")
    keeps = list(dict.fromkeys(tr.Budget(keep).keep for keep in keeps))
    known = [row["name"] for row in tr.methods()]
    unknown = [name for name in methods or () if name not in known]
    if unknown or (methods is not None and not methods):
        raise ValueError(f"methods={','.join(unknown)!r} unknown; allowed: {', '.join(known)}")
    model, processor = _load() if loaded is None else loaded
    wanted = [name for name in known if methods is None or name in methods]
    skipped = servable(model, wanted, keeps[0])
    if methods is not None and skipped:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    wanted = [name for name in wanted if name not in skipped]
    images = images or min(40, max(8, 1600 // (len(wanted) * len(keeps) + 1)))
    drawn = [keep for keep in keeps if not tr.Budget(keep).is_full]
    files = ["results.json"] + [
        name
        for stem in ("demo", "photo")
        for name in [*(f"{stem}_{m}_{k}.png" for m in wanted for k in drawn), f"overview_{stem}.png"]
        if drawn
    ]
    claim(out, files)

    begin = time.perf_counter()
    test = Bench(model, processor, questions("test", images, seed, PER_IMAGE))
    hard = Bench(model, processor, questions("hard", max(1, images // 2), seed, PER_IMAGE))
    filmed = video_questions(max(1, images // 3), per_video=3)
    total = len(test.asked) * (1 + len(wanted) * len(keeps)) + len(hard.asked) * (1 + len(wanted))
    total += len(filmed) * len(VIDEO_ARMS)
    with _progress(console, total) as advance:
        rows = measure(test, "test", wanted, keeps, advance, repeats)
        hard_rows = measure(hard, "hard", wanted, [HARD_KEEP], advance, repeats)
        videos = [
            answer_videos(model, processor, filmed, name, *arms(VIDEO_KEEP)[name], lambda: advance("videos", 1))
            for name in VIDEO_ARMS
        ]
        advance("drawing", 0)
        question = next((q for q in test.asked if q.kind == "color" and len(q.scene.things) >= 4), test.asked[0])
        scenes = (
            ("demo", question.image, question.question, question.answer),
            ("photo", photograph(), "how many objects are there?", None),
        )
        for stem, image, text, answer in scenes:
            for name, picture in pictures(model, processor, stem, image, text, answer, wanted, drawn):
                picture.save(out / name)
    settings = {
        "images": images,
        "questions_per_image": PER_IMAGE,
        "keep": list(keeps),
        "methods": wanted,
        "seed": seed,
    }
    results = {
        "tokenreduce": tr.__version__,
        "settings": {**settings, "timed_prompts": TIMED, "timed_rounds": repeats, "batch": BATCH},
        "environment": environment(model),
        "rows": [asdict(row) for row in (*rows, *hard_rows)],
        "videos": [asdict(row) for row in videos],
        "skipped": skipped,
        "seconds": round(time.perf_counter() - begin, 1),
        "files": files,
    }
    write_json(out / "results.json", results)
    if console is not None:
        _tell(console, out, rows, hard_rows, videos, results)
    return results


def _tell(
    console: Console, out: Path, rows: list[Row], hard: list[Row], videos: list[VideoRow], results: dict[str, Any]
) -> None:
    count, settings = rows[0].questions, results["settings"]
    console.print(table(rows, f"test: {settings['images']} pictures with 1 to 5 objects, {count} questions"))
    share = HARD_KEEP / hard[0].tokens_in
    console.print(table(hard, f"hard: 8 objects, {HARD_KEEP} tokens ({share:.1%}), {hard[0].questions} questions"))
    console.print(video_table(videos))
    full = [row for row in rows[1:] if row.tokens == row.tokens_in]
    if full:
        same = "equal" if all(row.same_replies == 1 for row in full) else "DIFFER from"
        console.print(
            f"With every token kept, the {count} replies {same} those of the unreduced model ({len(full)} rows)."
        )
    console.print(
        "Per sample. Speed-ups are medians of "
        f"{settings['timed_rounds']} interleaved rounds, {settings['timed_prompts']} prompts each, on "
        f"{results['environment']['device']} with {results['environment']['threads']} thread(s), attention "
        f"{results['environment']['attention']}. Prefill leaves the vision tower out, first token includes it."
    )
    for name, reason in results["skipped"].items():
        console.print(f"Left out {name}: {reason}")
    pictures = [name for name in results["files"] if name.startswith("overview")]
    console.print(
        f"{results['seconds']:.0f} s. Wrote {', '.join(str(out / name) for name in ['results.json', *pictures])}"
    )


def check_weights() -> None:
    """Raise ``FileNotFoundError``, saying what is missing, when the demo model is not installed."""
    from . import WEIGHTS

    if not (WEIGHTS / "config.json").is_file():
        raise FileNotFoundError(
            f"the demo model's weights are missing ({WEIGHTS.name}/config.json beside the demo package); reinstall "
            "tokenreduce, or train them with python -m tokenreduce.eval.demo.train"
        )


def _load() -> tuple[nn.Module, Any]:
    from . import load

    check_weights()
    return load()
