"""``tokenreduce inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenreduce.cli.app import Debug, app, teaching
from tokenreduce.cli.arguments import chosen_methods
from tokenreduce.cli.options import (
    Attention,
    Device,
    Dtype,
    DtypeName,
    Frames,
    Images,
    Imports,
    Keep,
    MaxNewTokens,
    Methods,
    Model,
    Parameters,
    PositionIds,
    Prompt,
    Videos,
)
from tokenreduce.cli.prompt import given_prompt, load_prompt


@app.command()
@teaching
def inspect(
    model: Model,
    method: Methods,
    out: Annotated[Path, typer.Option(help="The page, a name ending in .html.")],
    image: Images = None,
    video: Videos = None,
    frames: Frames = 8,
    prompt: Prompt = None,
    keep: Keep = None,
    parameter: Parameters = None,
    imports: Imports = None,
    positions: PositionIds = None,
    max_new_tokens: MaxNewTokens = 64,
    dtype: DtypeName = Dtype.auto,
    device: Device = "auto",
    attn: Attention = "sdpa",
    side: Annotated[int, typer.Option(min=100, help="Longer side of the picture, pixels.")] = 720,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
    debug: Debug = False,
) -> None:
    """Write one page that shows which visual tokens are left after every stage, for people without Jupyter.

    The page is a single file and needs no network. A slider goes through the stages and decoder layers; pointing at the
    picture tells which source patches a token stands for, its role and its score. A video plays, over a timeline of its
    tokens.

    **Examples**

    - `tokenreduce inspect --model demo --method hiprune --keep 0.25 --out page.html`

    - `tokenreduce inspect --model ./my-llava --method fastv:64 --image cat.jpg --prompt "What is this?" --out page.html`

    - `tokenreduce inspect --model demo --method holitom:0.2 --video clip.mp4 --out page.html`
    """
    chosen = chosen_methods(method, keep, parameter or [], positions.value if positions else None, imports)
    pictures, question = given_prompt(model, image, video, frames, prompt)
    if out.exists() and not overwrite:
        raise ValueError(f"--out={str(out)!r} exists; choose another name, or pass --overwrite to replace it")
    if out.suffix.lower() not in (".html", ".htm") or not out.parent.is_dir():
        raise ValueError(f"--out={str(out)!r}; allowed: a name ending in .html in a folder that exists")
    asked = load_prompt(model, pictures, question, dtype.value, device, attn)
    import tokenreduce as tr
    from tokenreduce.draw import write_page

    whole = asked.answer([], max_new_tokens)
    found = asked.answer(chosen, max_new_tokens)
    assert found.trace is not None
    facts = [
        ("model", model),
        ("methods", ", then ".join(map(repr, chosen))),
        ("prompt", question),
        ("answer", found.texts[0]),
        ("unreduced answer", whole.texts[0]),
        ("tokenreduce", tr.__version__),
    ]
    write_page(
        out,
        found.trace,
        pictures,
        asked.processor,
        title="Visual tokens that are left",
        facts=facts,
        side=side,
        overwrite=overwrite,
    )
    console = Console(soft_wrap=True, highlight=False)
    for name, text in facts[2:5]:
        console.print(f"{name}: {text}", markup=False)
    console.print(f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB); open it in a browser", markup=False)
