"""A query compressor: each of K regions of a picture becomes one new row, which a query that knows the question reads off it."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.learned_method import LearnedMethod
from tokenreduce.method import Step
from tokenreduce.methods.uniform import regions
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Text
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import truth, whole

TEXT = Text("all", special=False)


class Compressor(nn.Module):
    """Queries, keys and what is added to a row. ``query.bias`` is the learned query that all regions share."""

    def __init__(self, width: int, hidden: int, asks: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, hidden)
        self.key = nn.Linear(width, hidden, bias=False)
        self.question = nn.Linear(width, hidden, bias=False) if asks else None
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, width)
        nn.init.zeros_(self.second.weight)  # training begins with averages of tokens, which the language model knows
        nn.init.zeros_(self.second.bias)

    def asked(self, text: Tensor | None, like: Tensor) -> Tensor:
        """(B, 1, hidden) of the mean of a question's embeddings (B, D); zeros where nothing is asked."""
        if self.question is None or text is None:
            return like.new_zeros(len(like), 1, self.query.out_features)
        found: Tensor = self.question(F.layer_norm(text, text.shape[-1:]).to(like.dtype))[:, None]
        return found

    def scores(self, x: Tensor, mean: Tensor, region: Tensor, asked: Tensor) -> Tensor:
        """(B, N) float32: how well each token of ``x`` (B, N, D) answers the query of its region, of mean ``mean`` (B, K, D)."""
        query = self.query(self.norm(mean)) + asked
        own = query.gather(1, region[..., None].expand(-1, -1, query.shape[2]))
        score: Tensor = (own.float() * self.key(self.norm(x)).float()).sum(dim=-1)
        return score / query.shape[2] ** 0.5

    def more(self, rows: Tensor, asked: Tensor) -> Tensor:
        """(B, K, D), what is added to the ``rows`` (B, K, D) that were read."""
        added: Tensor = self.second(F.gelu(self.first(self.norm(rows)) + asked))
        return added


@dataclass(frozen=True, kw_only=True)
class QueryCompressor(LearnedMethod):
    """Cut the picture into K near-square regions, as ``pool`` does; a query of each, made of what is learned, of the mean of the
    region and of the question, attends to the tokens of its region, and what it reads, through two layers, is one new row.

    Attributes:
        keep: fraction, or count per image, of the rows that are left; 1 reads the whole picture. Weights serve any of them.
        hidden: width of queries, keys and layers; ``asks``, whether the text of the prompt is part of the query. None: as the
            weights say; new ones have 64, and ask. A prompt without text asks nothing.

    Source: in the manner of QueCC, Li et al., "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters", ICLR 2025,
        arXiv 2411.03312.
    Departures from the paper: the model is frozen, and rows begin as averages of projected tokens; regions of any number and
        shape in place of strides, their mean in place of a convolution; the question is the mean of its embeddings, in
        place of what the language model makes of its last token, and is added to queries, not to tokens; one head.
    """

    name = "query_compressor"
    title = "what a trained query reads in each region"
    paper = "arXiv 2411.03312"
    stages = ("projector",)
    looks_at = "features, text of the prompt unless not asked"
    shaped_by = MappingProxyType({"hidden": 64, "asks": True})

    hidden: int | None = None
    asks: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("hidden", self.hidden, 1, ", the width of queries and keys", none=True)
        truth("asks", self.asks, none=True)

    def module(self, facts: ModelFacts) -> nn.Module:
        return Compressor(facts.decoder_width, self.shape["hidden"], self.shape["asks"])

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector", needs=(TEXT,) if self.shape["asks"] else ()),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        learned, x = tokens.learned, tokens.features
        assert learned is not None, "a pipeline makes it"
        part = learned.part("", x)
        assert isinstance(part, Compressor)
        if learned.training:
            x = x.float()
        k = self.budget.count(tokens.num_tokens)
        region, centre = regions(tokens, k)
        asked = part.asked(tokens.signal(TEXT).mean() if self.shape["asks"] else None, x)
        score = part.scores(x, group_mean(x, region, k, tokens.size), region, asked)
        weight = relative(score + tokens.size.log(), region, k)
        rows = group_mean(x, region, k, weight)
        rows = (rows + part.more(rows, asked)).to(tokens.features.dtype)
        mass = weight.new_zeros(len(x), k).scatter_add(1, region, weight.detach())
        attention = weight.detach() / mass.gather(1, region)
        return Reduction(centre, region, features=rows, score=attention, positions=self.positions)


def relative(score: Tensor, region: Tensor, k: int) -> Tensor:
    """(B, N) in (0, 1]: exp of ``score`` (B, N), relative to the largest in each of the ``k`` regions ``region`` (B, N)."""
    top = score.new_full((len(score), k), -torch.inf).scatter_reduce(1, region, score.detach(), "amax")
    return (score - top.gather(1, region)).exp()
