"""The main job, ``tokenreduce demo``: every method at several budgets on the demo model; tables, JSON, pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenreduce.timing import REPEATS

from ..recipe import number
from ..results import claim, environment, write_json
from .measure import BATCH, TIMED, Bench, Row, measure, servable
from .overview import photograph, pictures
from .scene_questions import questions
from .tables import table, video_table
from .video import VideoRow, answer_videos, arms, video_questions

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

#: what the short run shows: the methods compared most, one of each idea, and the controls
SHOWN = (
    *("cdpruner", "divprune", "fastervlm", "fastv", "hiprune", "mustdrop", "pitome", "sparsevlm", "tome", "visionzip"),
    *("pool", "random", "uniform"),
)
KEEPS = (1.0, 0.5, 0.25, 0.11)
HARD_KEEP = 8  # tokens for eight objects: 5.6 % of 144
PER_IMAGE = 6  # questions about one picture, one of each kind where the picture allows it
VIDEO_KEEP = 0.15
VIDEO_ARMS = ("all tokens", "uniform per frame", "holitom")


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
    methods: Sequence[str] | Literal["all"] | None = None,
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
        methods: names; None takes those of ``SHOWN``, "all" every one that the demo model can serve.
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

    from . import load

    if images is not None and images < 1:
        raise ValueError(f"images={images}; allowed: an int >= 1, the number of pictures")
    if not keeps:
        raise ValueError("keeps is empty; give at least one budget, for example 0.25")
    keeps = list(dict.fromkeys(number(tr.Budget(keep).keep, "keeps") for keep in keeps))
    known = [row["name"] for row in tr.methods()]
    shown = known if methods == "all" else [name for name in SHOWN if name in known] if methods is None else methods
    unknown = [name for name in shown if name not in known]
    if unknown or not shown:
        raise ValueError(f"methods={','.join(unknown)!r} unknown; allowed: {', '.join(known)}")
    model, processor = load() if loaded is None else loaded
    wanted = [name for name in known if name in shown]
    skipped = servable(model, wanted, [*keeps, HARD_KEEP])
    if methods not in (None, "all") and skipped:
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
    videos_asked = video_questions(max(1, images // 3), per_video=3)
    total = len(test.asked) * (1 + len(wanted) * len(keeps)) + len(hard.asked) * (1 + len(wanted))
    total += len(videos_asked) * len(VIDEO_ARMS)
    with _progress(console, total) as advance:
        rows = measure(test, "test", wanted, keeps, advance, repeats)
        hard_rows = measure(hard, "hard", wanted, [HARD_KEEP], advance, repeats)
        videos = [
            answer_videos(model, processor, videos_asked, name, *arms(VIDEO_KEEP)[name], lambda: advance("videos", 1))
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
    console.print(video_table(videos, VIDEO_KEEP))
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
