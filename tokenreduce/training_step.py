"""One step of training, as a method that learns is told of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreduce.learned_module import Learned
from tokenreduce.model_facts import ModelFacts
from tokenreduce.training_settings import TrainingSettings

WRITTEN = 32  # tokens of an answer that the model writes itself, at the most


@dataclass(frozen=True)
class TrainingStep:
    """A frozen model, wrapped with the method, and what it is called with at this step.

    Attributes:
        model: as it is called; ``facts``, what is known of it.
        learned: the module beside it, and in ``learned.generator`` every draw of the step.
        inputs: of one call; ``labels``, (B, L) long, -100 outside of answers, None where nobody knows them.
        settings: of the run; ``number``, of the step, from 0.
    """

    model: Any
    facts: ModelFacts
    learned: Learned
    inputs: Mapping[str, Any]
    labels: Tensor | None
    settings: TrainingSettings
    number: int

    def __post_init__(self) -> None:
        if self.labels is None:
            if self.settings.loss == "answers":
                raise ValueError(
                    "loss='answers' without labels; allowed: data with labels, (B, L), or loss='distillation'"
                )
            return
        silent = (~(self.labels != -100).any(dim=1)).nonzero()
        if len(silent):
            raise ValueError(
                f"labels of step {self.number}, sample {int(silent[0])}, are -100 everywhere; allowed: at least one token to "
                "learn in each row, or no labels at all"
            )

    @property
    def generator(self) -> torch.Generator:
        """What every draw of the step comes from."""
        assert self.learned.generator is not None, "training gives it"
        return self.learned.generator

    def logits(self, **told: Any) -> Tensor:
        """(B, L, V) of the reduced model, or as ``told``: ``tr_keep=None`` for all tokens, ``tr_method=`` for another method."""
        if self.labels is not None:  # the question ends where the answer begins
            told["prompt_length"] = [int(row.nonzero()[0]) for row in self.labels != -100]
        logits: Tensor = self.model(**self.inputs, **told).logits
        return logits

    @torch.no_grad()
    def answered(self) -> TrainingStep:
        """The same with labels: where there are none, what the model itself writes with all tokens, up to 32 of them.

        Errors: ``ValueError`` where prompts are padded on the right, or the model returns its answer apart from them.
        """
        if self.labels is not None:
            return self
        ids = self.inputs["input_ids"]
        mask = self.inputs.get("attention_mask", torch.ones_like(ids))
        told = "allowed: data with labels, (B, L), -100 outside of the answers"
        if not bool(mask[:, -1].all()):
            raise ValueError(
                f"the prompts of step {self.number} are padded on the right, where an answer would follow; {told}, or "
                "processor.tokenizer.padding_side = 'left'"
            )
        both = self.model.generate(**self.inputs, tr_keep=None, do_sample=False, num_beams=1, max_new_tokens=WRITTEN)
        length = ids.shape[1]
        if both.shape[1] <= length or not torch.equal(both[:, :length], ids):
            raise ValueError(f"{type(self.model).__name__} returns answers without their prompts; {told}")
        written = both[:, length:]
        ends = self.model.generation_config.eos_token_id
        end = torch.isin(written, torch.as_tensor([] if ends is None else ends, device=written.device))
        real = end.long().cumsum(dim=1) - end.long() == 0  # up to the first token that ends it, which is part of it
        more = {
            name: torch.cat([x, x.new_zeros(written.shape)], dim=1)  # such as token_type_ids, 0 of text
            for name, x in self.inputs.items()
            if isinstance(x, Tensor) and x.shape == ids.shape
        }
        more |= {"input_ids": both, "attention_mask": torch.cat([mask, real.to(mask.dtype)], dim=1)}
        labels = torch.cat([torch.full_like(ids, -100), written.masked_fill(~real, -100)], dim=1)
        return dataclasses.replace(self, inputs={**self.inputs, **more}, labels=labels)
