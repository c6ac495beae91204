"""What every tiny family is made of: token ids, small configurations, weights that matter, batches of prompts."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

PAD, BOS, EOS, IMAGE, VIDEO = 0, 1, 2, 3, 4
START, END, GLOBAL, NEWLINE, CLOCK = 5, 6, 7, 8, 9  # around images, tile markers, time stamps
TILE = 10  # ids 10 ... 18 name the tile at row r, column c: TILE + 3 * r + c
WORDS = 20  # ids from here on are text
VOCAB = 120
TRANSFORMERS = tuple(map(int, transformers.__version__.split(".")[:2]))
SIDE = 32  # pixels of an image or tile that a fixed-size tower takes


@dataclass(frozen=True)
class Piece:
    """One picture or video in a prompt: its tokens, the id of its placeholders, and what the model needs to see it."""

    modality: str
    tokens: list[int]
    placeholder: int
    payload: dict[str, Tensor]


@dataclass(frozen=True)
class Visual:
    """Where one picture or video sits: columns (N,) of its placeholders in ``input_ids``."""

    modality: str
    columns: Tensor


@dataclass(frozen=True)
class Sample:
    """One prompt: its tokens, which of its ``pieces`` each token belongs to (-1: none), and these, in order."""

    tokens: list[int]
    owner: list[int]
    pieces: list[Piece]


@dataclass(frozen=True)
class Case:
    """Inputs for a model of ``config``, and per sample what is in them, in the order of the prompt."""

    inputs: dict
    visuals: list[list[Visual]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    config: Any = None


#: samples of numbered images ("i") and the video ("v"), and the side of the padding
Plan = tuple[list[list[str]], str | None]
FAMILIES: dict[str, TinyFamily] = {}  # whose pictures are columns of the decoder's sequence
BESIDE: dict[str, TinyFamily] = {}  # whose pictures join the text elsewhere
KNOWN = ChainMap(FAMILIES, BESIDE)


class TinyFamily:
    """A model of the real class, a few dozen channels wide, and prompts as the family's processor makes them.

    A subclass is known under its ``key`` by being defined.
    """

    model: Any  #: the class of transformers; None where the installed one does not have it yet
    since: ClassVar[tuple[int, int]] = (5, 17)  #: the first transformers whose bare model runs
    shapes: list[Any]  #: sizes of the pictures ``i0``, ``i1`` and ``i2``, in the unit that ``picture`` takes
    plain_shapes: list[Any] | None = (
        None  #: the same of pictures whose every patch becomes a token, where others have some cut
    )
    film_shape: Any = None  #: size of the video ``v``; None where the family takes no video
    plans: ClassVar[dict[str, Plan]] = {}  #: what stands for kinds of prompts that its processor does not make
    attention: ClassVar[dict[str, Any]] = {}  #: what stands for an attention backend that a part cannot run on
    apart: ClassVar[str] = ""  #: why a batch holds images or videos, but never both, where that is so
    brief: ClassVar[bool] = False  #: whether what every family must show is enough, since its ways are those of others
    listens: ClassVar[bool] = True  #: whether its tower has attention to listen to
    layer: ClassVar[int] = 2  #: a decoder layer behind one that attends, in front of which tokens can be dropped
    unbilled: ClassVar[str] = ""  #: what is computed outside of the decoder and is no part of a picture's bill
    fault: ClassVar[str] = ""  #: of the bare model, in words with what to do, where ``mend`` is needed
    refuses: ClassVar[tuple[str, ...]] = ()  #: what no method can do here, of the stages "projector" and "llm"

    def __init_subclass__(cls, *, key: str, beside: bool = False) -> None:
        if cls.model is not None and cls.since <= TRANSFORMERS:
            (BESIDE if beside else FAMILIES)[key] = cls()

    def config(self, **variant: Any) -> Any:
        """The configuration, with ``variant`` in place of its fields."""
        raise NotImplementedError

    def finish(self, model: Any) -> None:
        """What ``fill`` cannot know of the weights."""

    def mend(self, model: Any) -> None:
        """Take ``fault`` off a model, so that everything else about it can be tested."""

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        """A picture of ``shape``; ``alone``: the only one of its sample."""
        raise NotImplementedError

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        raise NotImplementedError

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        """Arguments of the model besides ``input_ids`` and ``attention_mask``."""
        raise NotImplementedError

    def row(self, pieces: list[Piece], tail: int, draw: Draw) -> tuple[list[int], list[int]]:
        """Tokens of one prompt with ``tail`` words at its end, and which piece each token belongs to (-1: none)."""
        tokens, owner = [BOS], [-1]
        for i, piece in enumerate(pieces):
            words = draw.words(2 + i)
            tokens += words + piece.tokens
            owner += [-1] * len(words) + [i] * len(piece.tokens)
        words = draw.words(tail)
        return tokens + words, owner + [-1] * tail


def text(kind: str, depth: int = 5, **more: Any) -> dict:
    """Text configuration: width 32, 4 heads of 8 over 2 key heads, vocabulary 120."""
    own = {"head_dim": 8} if kind not in ("qwen2", "qwen2_vl_text", "qwen2_5_vl_text") else {}
    return {
        "model_type": kind,
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        **own,
        **more,
    }


def vision(kind: str, patch: int = 8, depth: int = 4, **more: Any) -> dict:
    """Configuration of a tower for square images of 32 pixels."""
    return {
        "model_type": kind,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": depth,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": patch,
        **more,
    }


@torch.no_grad()
def fill(model: Any, seed: int) -> None:
    """Weights large enough that outputs depend on every token; special tokens are never the likeliest to be written."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith("A_log"):  # forgetting slow enough that a linear layer remembers a picture
            p.uniform_(math.log(0.02), math.log(0.2), generator=generator)
        elif "gate" in name and p.numel() == 1:  # what it lets through matters
            p.fill_(0.7)
        elif p.ndim > 1:
            p.normal_(0, 0.6 if "embed" in name else 1.5 / math.sqrt(p[0].numel()), generator=generator)
        elif name.endswith("bias"):
            p.normal_(0, 0.1, generator=generator)
        else:
            p.add_(torch.empty_like(p).normal_(0, 0.1, generator=generator))
    head = next(module for name, module in model.named_modules() if name.endswith("lm_head"))
    head.weight[:WORDS] = 0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.bos_token_id = BOS


class Draw:
    """Random words and pixels, one stream per case."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def words(self, n: int) -> list[int]:
        return torch.randint(WORDS, VOCAB, (n,), generator=self.generator).tolist()

    def pixels(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def prompt(family: TinyFamily, pieces: list[Piece], tail: int, draw: Draw) -> Sample:
    """A prompt that shows ``pieces``, with ``tail`` words at its end."""
    return Sample(*family.row(pieces, tail, draw), pieces)


def assemble(family: TinyFamily, samples: list[Sample], pad: str | None, config: Any) -> Case:
    """A batch, padded on the side ``pad``, as the processor of the family hands it over, and where its pictures are."""
    width = max(len(sample.tokens) for sample in samples)
    ids = torch.full((len(samples), width), PAD)
    mask = torch.zeros_like(ids)
    visuals = []
    for b, sample in enumerate(samples):
        start = 0 if pad == "right" else width - len(sample.tokens)
        tokens, owner = torch.tensor(sample.tokens), torch.tensor(sample.owner)
        ids[b, start : start + len(tokens)] = tokens
        mask[b, start : start + len(tokens)] = 1
        visuals.append(
            [
                Visual(piece.modality, start + ((owner == i) & (tokens == piece.placeholder)).nonzero()[:, 0])
                for i, piece in enumerate(sample.pieces)
            ]
        )
    case = Case({"input_ids": ids, "attention_mask": mask}, visuals, samples, config)
    case.inputs.update(family.collate([sample.pieces for sample in samples], case, config))
    return case


def gather(samples: list[list[Piece]], name: str, how: Callable = torch.cat) -> dict:
    """Payload ``name`` of all pieces that carry one, in the order of the batch; nothing where none does."""
    found = [piece.payload[name] for pieces in samples for piece in pieces if name in piece.payload]
    return {name: how(found)} if found else {}


def stack_tiles(tiles: list[Tensor]) -> Tensor:
    """(images, most tiles, C, H, W) with zeros for tiles that are not there."""
    out = tiles[0].new_zeros(len(tiles), max(map(len, tiles)), *tiles[0].shape[1:])
    for i, image in enumerate(tiles):
        out[i, : len(image)] = image
    return out
