"""The prompt of a stream as its processor writes it: text in front of the video, windows of frames, the question behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenreduce.adapters.families.base import Family

#: what a processor says of the text, which a window has none of
OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
QUESTION = "{question}"


class StreamPrompt:
    """What of a prompt a processor makes, taken apart at the video.

    Args:
        family: of the model, which says what frames are shown as.
        prompt: the text around the video with ``{question}``; None: the processor's chat template.

    Errors: ``ValueError`` where the prompt does not hold one video and the question behind it.
    """

    def __init__(self, processor: Any, family: Family, fps: float, prompt: str | None) -> None:
        self.processor, self.fps, self.prompt = processor, fps, prompt
        self.tokenizer = getattr(processor, "tokenizer", processor)
        assert family.streams_as is not None, "other families are refused"
        self.medium = family.streams_as
        self.id = family.placeholder_ids()[self.medium]
        self.token: str = self.tokenizer.convert_ids_to_tokens(self.id)
        parameter = next(family.model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._grid: Any = None
        self._before = self._split("")[0]

    def before(self) -> Tensor:
        """(n,) long, the text in front of the video."""
        return self._before

    def behind(self, question: str) -> Tensor:
        """(n,) long, the text behind the video."""
        before, behind = self._split(question)
        if not torch.equal(before, self._before):
            raise ValueError("the chat template writes the question in front of the video; give prompt= with it behind")
        return behind

    def window(self, frames: Sequence[np.ndarray]) -> tuple[dict[str, Any], int]:
        """What the model is shown of ``frames``, (H, W, 3) uint8 each, and how many placeholders they take."""
        if self.medium == "video":
            about = {"fps": self.fps, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
            given = {"videos": [np.stack(frames)], "do_sample_frames": False, "video_metadata": [about]}
            made = self.processor(text=[self.token], **given, return_tensors="pt")
        else:
            made = self.processor(text=[self.token * len(frames)], images=list(frames), return_tensors="pt")
        grid = made.get("video_grid_thw")
        if grid is not None:
            if self._grid not in (None, grid[0, 1:].tolist()):
                raise ValueError(
                    f"the processor scales the frames of this window to {grid[0, 1:].tolist()} patches after {self._grid}, since "
                    "it gives videos of fewer frames more pixels each; hand over frames of the size that you want, and set "
                    "processor.video_processor.do_resize = False"
                )
            self._grid = grid[0, 1:].tolist()
        shown = {name: self._placed(x) for name, x in made.items() if name not in OF_TEXT}
        return shown, int((made["input_ids"] == self.id).sum())

    def decode(self, ids: Tensor) -> str:
        """The text of an answer (n,)."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _placed(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)

    def _split(self, question: str) -> tuple[Tensor, Tensor]:
        """(n,) and (m,) long, the tokens before and behind the placeholder of the video."""
        text = self._text(question)
        begins = getattr(self.tokenizer, "bos_token", None)
        more = {"add_special_tokens": False} if begins and text.startswith(begins) else {}
        ids = torch.tensor(self.tokenizer(text, **more)["input_ids"])
        places = (ids == self.id).nonzero().flatten().tolist()
        if len(places) != 1:
            raise ValueError(
                f"the prompt holds {len(places)} placeholders {self.token!r}; allowed: one, for the video, with {QUESTION} "
                f"behind it, such as prompt='USER: {self.token}\\n{QUESTION} ASSISTANT:'"
            )
        return ids[: places[0]], ids[places[0] + 1 :]

    def _text(self, question: str) -> str:
        if self.prompt is not None:
            head, found, tail = self.prompt.partition(QUESTION)
            if not found or self.token in tail:
                raise ValueError(
                    f"prompt={self.prompt!r}; allowed: a text with {self.token} for the video and {QUESTION} behind it, such as "
                    f"'USER: {self.token}\\n{QUESTION} ASSISTANT:'"
                )
            return head + question + tail
        if getattr(self.processor, "chat_template", None) is None:
            raise ValueError(
                f"the processor has no chat template; give the text around the video, such as prompt='USER: {self.token}\\n"
                f"{QUESTION} ASSISTANT:'"
            )
        content = [{"type": self.medium}, {"type": "text", "text": question}]
        asked = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
