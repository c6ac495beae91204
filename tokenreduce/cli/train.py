"""``tokenreduce train``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, teaching
from tokenreduce.cli.options import Attention, Device, Dtype, DtypeName, Imports, Parameters

if TYPE_CHECKING:
    from PIL import Image


class Loss(StrEnum):
    distillation = "distillation"
    answers = "answers"


class Relax(StrEnum):
    straight_through = "straight_through"
    noise = "noise"


class Asked(NamedTuple):
    """A picture, what is asked, and the answer, empty where none is given."""

    image: Path | Image.Image
    text: str
    answer: str


@app.command()
@teaching
def train(
    model: Annotated[str, typer.Argument(help="Local folder or hub id, or `demo`.")],
    method: Annotated[str, typer.Option(help="A method that learns; one of your own is ./mine.py:Mine.")],
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help='Lines of JSON, {"image": FILE, "prompt": TEXT, "answer": TEXT}, the answer optional, files beside it. The demo '
            "model brings its own.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Budget it is trained for: a fraction such as 0.11, or a count. [default: that of the method]",
            show_default=False,
        ),
    ] = None,
    parameter: Parameters = None,
    imports: Imports = None,
    out: Annotated[Path, typer.Option(help="File to write, .safetensors; never one that is there.")] = Path(
        "weights.safetensors"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let --out replace a file.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimizer.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Prompts per step, of each process.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 3e-3,
    loss: Annotated[
        Loss, typer.Option(help="From what the unreduced model says, or from answers.")
    ] = Loss.distillation,
    relax: Annotated[Relax, typer.Option(help="How gradients pass the choice of tokens.")] = Relax.straight_through,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A .safetensors file to go on from, written on the way. [default: beside --out]")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 50,
    curve: Annotated[Path | None, typer.Option(help="Draw the loss into this picture.")] = None,
    dtype: DtypeName = Dtype.auto,
    device: Device = "auto",
    attention: Attention = "sdpa",
    debug: Debug = False,
) -> None:
    """Train the few weights of a method that learns; the model beside it stays as it is.

    By default the method learns to let the model say what it says with all tokens, so that answers need not be known. A run that
    was stopped goes on where its last checkpoint is. Two CPU cores train a selector for the demo model in minutes. Launched by
    `accelerate launch` or `torchrun`, processes share the data and train the same weights.

    **Examples**

    - `tokenreduce train demo --method learned_selector --keep 8 --steps 200 --out selector.safetensors --curve loss.png`

    - `tokenreduce train llava-hf/llava-1.5-7b-hf --method learned_selector -p asks=true --keep 64 --data asked.jsonl`

    - `tokenreduce train llava-hf/llava-1.5-7b-hf --method dyvte --data asked.jsonl --learning-rate 6e-5`

    - `accelerate launch --multi_gpu -m tokenreduce.cli train llava-hf/llava-1.5-7b-hf --method dyvte --data asked.jsonl`

    - `tokenreduce run --model demo --method learned_selector --keep 8 -p weights=selector.safetensors`
    """
    import tokenreduce as tr
    from tokenreduce.cli.arguments import chosen_methods
    from tokenreduce.cli.loading import load
    from tokenreduce.cli.output import check_picture
    from tokenreduce.files import why_not_writable
    from tokenreduce.headed_tensors import SUFFIX
    from tokenreduce.loading import quiet
    from tokenreduce.training_group import TrainingGroup

    reason = why_not_writable(out)
    if reason is None and out.suffix.lower() != SUFFIX:
        reason = f"allowed: a name ending in {SUFFIX}"
    if reason is None and out.exists() and not overwrite:
        reason = "it exists; choose another name, or pass --overwrite to replace it"
    if reason is not None:
        raise ValueError(f"--out={str(out)!r}: {reason}")
    if curve is not None:
        check_picture(curve)
    if data is None and model != "demo":
        raise ValueError("--data is missing; only the demo model brings its own. For example --data asked.jsonl")
    (made,) = chosen_methods([method], keep, parameter or [], None, imports)
    settings = tr.TrainingSettings(
        steps=steps, learning_rate=learning_rate, loss=loss.value, relax=relax.value, seed=seed
    )
    quiet()
    state = checkpoint or out.with_name(f".{out.stem}.checkpoint{SUFFIX}")
    with TrainingGroup.launched() as group:
        network, processor = load(model, dtype, device, attention)
        asked = _demo() if data is None else _lines(data, processor)
        found = tr.train(
            network,
            made,  # type: ignore[arg-type]  # what is no method that learns is refused there
            batches(network, processor, asked, batch, seed),
            checkpoint=state,
            every=every,
            progress=True,
            settings=settings,
        )
    if group.rank > 0:
        return
    found.weights.save(out, overwrite=overwrite)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if curve is not None:
        found.draw(curve)
        console.print(f"wrote {curve}", markup=False)
    told = "" if keep is None else f", keep={keep}"
    console.print(f"wrote {out}; use it: tr.wrap(model, {made.name!r}, weights={str(out)!r}{told})", markup=False)


def batches(
    model: Any, processor: Any, asked: Sequence[Asked], size: int, seed: int
) -> Callable[[int], Mapping[str, Any]]:
    """What ``model`` is called with at each step: ``size`` of ``asked``, every epoch in an order of its own."""
    import torch

    from tokenreduce.pictures import open_picture

    tokenizer = processor.tokenizer

    def at(step: int) -> Mapping[str, Any]:
        rows = []
        for place in range(step * size, (step + 1) * size):
            epoch, index = divmod(place, len(asked))
            order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
            rows.append(asked[int(order[index])])
        images = [[one.image if not isinstance(one.image, Path) else open_picture(one.image)] for one in rows]
        text = [f"{one.text}{one.answer}" for one in rows]
        inputs = processor(images=images, text=text, return_tensors="pt", padding=True).to(model.device)
        given = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        if all(one.answer for one in rows):
            labels = torch.full_like(given["input_ids"], -100)
            for row, one, ids, real in zip(labels, rows, given["input_ids"], given["attention_mask"], strict=True):
                columns = real.nonzero()[:, 0]
                answer = columns[
                    -(len(tokenizer(one.text + one.answer).input_ids) - len(tokenizer(one.text).input_ids)) :
                ]
                row[answer] = ids[answer]
            given["labels"] = labels
        return given

    return at


def _demo() -> Sequence[Asked]:
    from tokenreduce.eval import demo

    return [Asked(q.image, demo.prompt(q.question), "") for q in demo.questions("train", 400, per_image=4)]


def _lines(path: Path, processor: Any) -> Sequence[Asked]:
    from tokenreduce.loading import prompt_text

    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            image, text, answer = path.parent / row["image"], row["prompt"], row.get("answer", "")
            if not image.is_file() or not isinstance(text, str) or not isinstance(answer, str):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--data={str(path)!r}, line {number}: {line[:80]!r}; allowed: "
                '{"image": FILE, "prompt": TEXT, "answer": TEXT}, '
                "the answer optional, FILE a picture that is there, seen from the folder of the lines"
            ) from error
        found.append(Asked(image, prompt_text(processor, ["image"], text), answer))
    if not found:
        raise ValueError(f"--data={str(path)!r} is empty; allowed: a line of JSON for each prompt")
    return found
