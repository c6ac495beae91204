"""A video that arrives while it is watched: frames are encoded, reduced and cached window by window, questions come any time."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenreduce.attachment import attachment_of, is_wrapped
from tokenreduce.method import Method
from tokenreduce.registry import make
from tokenreduce.stream_prompt import StreamPrompt
from tokenreduce.validation import whole
from tokenreduce.video_frames import frames_of
from tokenreduce.wrapping import unwrap, wrap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tokenreduce.traces import Trace

#: tokens of an answer where nobody says how many
ANSWER = 64


class Stream:
    """One video on its way through a wrapped model; made by ``tr.stream``.

    The model stays wrapped until ``close``, or the end of a ``with`` block; other calls of it are reduced, too.

    Attributes:
        window: frames that are encoded, reduced and cached together.
        history: tokens of the video that the cache holds at most; None: all that were kept.
        frames: frames that have come so far, ``waiting`` for their window to be full among them.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        methods: Sequence[Method],
        window: int,
        fps: float,
        prompt: str | None,
        history: int | None,
    ) -> None:
        from tokenreduce.adapters.hooks.growing_prompt import GrowingPrompt
        from tokenreduce.adapters.registry import family_of

        self.model, self.window, self.fps, self.history = model, window, fps, history
        self.frames = 0
        self._held: list[np.ndarray] = []
        self._size: tuple[int, ...] | None = None
        family = family_of(getattr(model, "get_base_model", lambda: model)())
        medium = getattr(family, "streams_as", None)
        wrap(model, *methods, images_as_video=medium == "image")
        try:
            self._attachment = attachment_of(model)
            hooks: Any = self._attachment.hooks
            self._growing = GrowingPrompt(hooks)
            step = hooks.family.frames_per_step
            if window % step:
                raise ValueError(
                    f"window={window}, but a {hooks.family.model.config.model_type} model joins {step} frames in one step of "
                    f"time; allowed: a multiple of {step}"
                )
            self._prompt = StreamPrompt(processor, hooks.family, fps, prompt)
            self._growing.write(self._prompt.before())
        except BaseException:
            unwrap(model)
            raise

    @property
    def waiting(self) -> int:
        """Frames that wait for their window to be full; a question sees them all the same."""
        return len(self._held)

    @property
    def tokens(self) -> int:
        """Tokens in the cache: the text in front of the video and what was kept of full windows, or is left of that."""
        return self._growing.place.columns

    @property
    def trace(self) -> Trace:
        """Where the visual tokens of the last window went; columns are counted from the beginning of the cache."""
        self._check_open()
        found = self._attachment.hooks.done.trace
        if found is None or not self.frames:
            raise ValueError("no trace yet: add frames first, until a window is full")
        return found

    def add(self, frames: Any) -> Stream:
        """Let ``frames`` follow; each full window goes through the model at once. Returns the stream.

        Args:
            frames: a path of a video file, which is decoded on the way; a PIL picture; uint8 pixels (H, W, 3) as an array or
                (3, H, W) as a tensor, or several; or an iterable of these, which is consumed as it goes.

        Errors: ``TypeError`` / ``ValueError`` for what is no frame, or has another size than the frames before.
        """
        self._check_open()
        for frame in frames_of(frames, self.fps):
            if self._size not in (None, frame.shape):
                raise ValueError(
                    f"frame {self.frames} is {frame.shape[1]} x {frame.shape[0]} pixels after frames of "
                    f"{self._size[1]} x {self._size[0]}; allowed: frames of one size. Begin another stream for another video."
                )
            self._size = frame.shape
            self._held.append(frame)
            self.frames += 1
            if len(self._held) == self.window:
                try:
                    self._show()
                finally:
                    self._held.clear()
                if self.history is not None:
                    self._growing.forget(self.history)
        return self

    def ask(self, question: str, **generation: Any) -> str:
        """The answer to ``question`` about all frames so far; the stream goes on as if it had not been asked.

        Args:
            generation: arguments of ``generate``, such as ``max_new_tokens`` (64) or ``do_sample`` (False).

        Errors: ``ValueError`` before the first frame, and for arguments whose answers cannot be taken back, such as beams.
        """
        return self._prompt.decode(self.answer(question, **generation))

    def answer(self, question: str, **generation: Any) -> Tensor:
        """(n,) long, the tokens of ``ask``."""
        self._check_open()
        if not self.frames:
            raise ValueError("the stream has no frame yet; add some first: stream.add(frames)")
        behind = self._prompt.behind(question)
        mark = self._growing.mark() if self._held else None
        try:
            if mark is not None:  # a window that is not full is shown for this question only
                self._show()
            return self._growing.answer(behind, {"max_new_tokens": ANSWER, "do_sample": False, **generation})
        finally:
            if mark is not None:
                self._growing.back(mark)

    def close(self) -> None:
        """Unwrap the model and free the cache."""
        if is_wrapped(self.model) and attachment_of(self.model) is self._attachment:
            unwrap(self.model)
        self._held.clear()
        del self._growing.cache

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _show(self) -> None:
        arguments, columns = self._prompt.window(self._held)
        step = self._growing.family.frames_per_step
        self._growing.show(arguments, columns, -(-len(self._held) // step))

    def _check_open(self) -> None:
        if not is_wrapped(self.model) or attachment_of(self.model) is not self._attachment:
            raise ValueError(
                "the stream is closed, or its model was unwrapped; begin another: tr.stream(model, processor)"
            )


def stream(
    model: nn.Module,
    processor: Any,
    method: str | Method | type[Method] | Sequence[Method],
    *,
    window: int = 16,
    fps: float = 1.0,
    prompt: str | None = None,
    history: int | None = None,
    **parameters: Any,
) -> Stream:
    """Watch a video of any length in bounded memory: what is held are ``window`` frames and the tokens that were kept.

    Each window of frames is encoded, reduced by the method and put into the cache, and its pixels and all that was dropped
    are forgotten. A question is answered behind what is in the cache and then taken back.

    Args:
        model: a vision-language model; ``processor``: its own.
        method: a name, class or instance, or several instances, that act in front of the language model by the frames alone.
        window: frames that a method sees together: its video. A count ``keep`` is a count for each window.
        fps: frames for each second, in files and for models that tell the time.
        prompt: the text around the video, such as ``"USER: <video>\\n{question} ASSISTANT:"``, with the placeholder that the
            processor knows; None: its chat template.
        history: tokens of the video that the cache holds at most: whole windows leave it, the oldest first. None: all stay.
        parameters: hyper-parameters of the method, such as ``keep``, when there is a single one.

    Errors: ``TypeError`` / ``ValueError`` for a model that takes videos in one call only, a method that needs the question or
        acts inside the language model, and those of ``tr.wrap``; the model is left as it was.

    Example:
        >>> import tokenreduce as tr
        >>> from tokenreduce.eval import demo
        >>> model, processor = demo.load()
        >>> prompt = "USER: <image>\\n{question} ASSISTANT:"
        >>> with tr.stream(model, processor, "holitom", keep=0.2, inner_keep=1.0, window=4, prompt=prompt) as stream:
        ...     for question in demo.questions("test", images=3, per_image=1):
        ...         reply = stream.add(question.image).ask(question.question)
        >>> stream.frames
        3
    """
    whole("window", window, 1, ", the frames that go through the model together, such as window=16")
    whole("history", history, 1, ", the tokens of the video that stay in the cache, such as history=4096", none=True)
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not fps > 0:
        raise ValueError(f"fps={fps!r}; allowed: a number of frames for each second above 0, such as fps=1.0")
    given: list[Any] = list(method) if isinstance(method, (list, tuple)) else [method]
    if parameters and len(given) > 1:
        raise TypeError(f"parameters {sorted(parameters)} are ambiguous for {len(given)} methods; give each its own")
    return Stream(model, processor, [make(one, **parameters) for one in given], window, float(fps), prompt, history)
