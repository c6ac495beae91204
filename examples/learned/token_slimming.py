"""Token slimming, in the manner of SiT (Zong et al., ECCV 2022, arXiv 2111.12624), for projected tokens of a frozen model.

SiT puts a small module into a ViT and trains both: each of K new tokens is a sum over all tokens, by weights that are learned.
Here only that module learns, by distillation, beside a vision-language model that stays as it is. Sums over a whole picture
begin far from anything the model knows and need many steps; `query_compressor` begins with regions. On the demo model:

    python examples/learned/token_slimming.py slimming.safetensors

    model = tr.wrap(model, TokenSlimming(keep=9, weights="slimming.safetensors"))
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

import tokenreduce as tr
from tokenreduce.eval import demo
from tokenreduce.methods.uniform import regions


@dataclass(frozen=True, kw_only=True)
class TokenSlimming(tr.LearnedMethod):
    """Each new row is a sum over all tokens of the picture, weighted by softmax over tokens of what two layers make of them.

    Attributes:
        keep: new rows of a picture, at most ``slots``.
        slots: rows that are learned, 16 in new weights; ``hidden``, width of the first layer, 64 in new ones.
    """

    name = "token_slimming"
    title = "sums of all tokens by learned weights"
    paper = "arXiv 2111.12624"
    stages = ("projector",)
    shaped_by = MappingProxyType({"slots": 16, "hidden": 64})

    slots: int | None = None
    hidden: int | None = None

    def module(self, facts):
        width, hidden = facts.decoder_width, self.shape["hidden"]
        last = nn.Linear(hidden, self.shape["slots"])
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), last)

    def reduce(self, tokens):
        x, k = tokens.features, self.budget.count(tokens.num_tokens)
        if k > self.shape["slots"]:
            raise ValueError(
                f"keep={self.keep!r} asks for {k} rows of {self.shape['slots']} slots; allowed: fewer rows"
            )
        x = x.float() if tokens.learned.training else x  # as the module is
        share = tokens.learned.part("", x)(x)[..., :k].float().softmax(dim=1)  # (B, N, K), over tokens
        rows = (share.transpose(1, 2) @ x.float()).to(tokens.features.dtype)
        return tr.Reduction(
            source=regions(tokens, k)[1],  # a sum sits at no token of its own: they are spread over the picture
            assign=share.argmax(dim=2),  # shown in pictures with the row that it adds most to
            features=rows,
            positions=self.positions,
        )


def trained(steps: int, keep: int = 9) -> tr.Trained:
    """Weights from ``steps`` batches of questions about scenes of the demo model."""
    model, processor = demo.load()
    asked = demo.questions("train", 4 * steps, per_image=2)

    def batch(step):
        own = asked[8 * step : 8 * step + 8]
        pictures, text = [q.image for q in own], [demo.prompt(q.question) for q in own]
        return processor(images=pictures, text=text, return_tensors="pt", padding=True)

    settings = tr.TrainingSettings(steps=steps, learning_rate=1e-2)
    return tr.train(model, TokenSlimming(keep=keep), batch, settings=settings, progress=True)


if __name__ == "__main__":
    trained(steps=300).weights.save(sys.argv[1])
