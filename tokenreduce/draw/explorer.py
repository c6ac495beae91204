"""A panel for notebooks: choose method, budget, stage and image, and see what is left and what the model answers."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tokenreduce.answers import Answer, answer
from tokenreduce.draw.overlay import draw
from tokenreduce.draw.stages import step_names
from tokenreduce.loading import model_inputs
from tokenreduce.registry import make, registry

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

KEEPS = (1.0, 0.75, 0.5, 1 / 3, 0.25, 0.15, 0.1, 0.05)


def explore(
    model: nn.Module,
    processor: Any,
    images: Mapping[str, Image.Image] | Sequence[Image.Image],
    question: str,
    *,
    methods: Sequence[str] = (),
    keeps: Sequence[float | int] = KEEPS,
    max_new_tokens: int = 32,
    side: int = 480,
) -> Any:
    """An ipywidgets panel: method, budget, image, stage (decoder layers included), heat map; picture and answer.

    The model runs again when method, budget or image change, and is unwrapped in between.

    Args:
        model, processor: a model that is not wrapped, and its processor.
        images: to choose from, by name or in order.
        question: about each of them; the chat template of the processor is applied.
        methods: names; empty: all.
        keeps: budgets to choose from.
        max_new_tokens: longest answer, tokens.
        side: longer side of the picture, pixels.

    Errors: ``ImportError`` without ipywidgets. What a method or a budget cannot do is said in the panel.
    """
    return Explorer(model, processor, images, question, methods, keeps, max_new_tokens, side).panel


class Explorer:
    """The controls of ``explore``, and what they last led to: ``found`` (None where a method refused)."""

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        images: Mapping[str, Image.Image] | Sequence[Image.Image],
        question: str,
        methods: Sequence[str],
        keeps: Sequence[float | int],
        max_new_tokens: int,
        side: int,
    ) -> None:
        widgets = _widgets()
        self.model, self.processor, self.question = model, processor, question
        self.images = dict(images) if isinstance(images, Mapping) else {f"image {i}": x for i, x in enumerate(images)}
        self.max_new_tokens, self.side = max_new_tokens, side
        self.found: Answer | None = None
        names = list(methods) or list(registry())
        budgets = [(f"{k:.0%}" if isinstance(k, float) else f"{k} tokens", k) for k in keeps]
        wide = {"style": {"description_width": "60px"}, "layout": widgets.Layout(width="340px")}
        self.method = widgets.Dropdown(options=names, description="method", **wide)
        self.keep = widgets.SelectionSlider(
            options=budgets, value=keeps[len(keeps) // 2], description="keep", continuous_update=False, **wide
        )
        self.image = widgets.Dropdown(options=list(self.images), description="image", **wide)
        self.step = widgets.SelectionSlider(options=[("all tokens", 0)], description="stage", **wide)
        self.heat = widgets.Checkbox(value=False, description="scores", indent=False)
        self.text = widgets.HTML()
        self.picture = widgets.Image(format="png")
        for control in (self.method, self.keep, self.image):
            control.observe(self._run, names="value")
        for control in (self.step, self.heat):
            control.observe(self._show, names="value")
        controls = [self.method, self.keep, self.image, self.step, self.heat, self.text]
        self.panel = widgets.HBox([self.picture, widgets.VBox(controls)])
        self._run()

    def _run(self, change: Any = None) -> None:
        """Answer the question as the controls say."""
        picture = self.images[self.image.value]
        self.found = None
        try:
            method = make(self.method.value, keep=self.keep.value)
            inputs = model_inputs(self.processor, picture, self.question, self.model)
            self.found = answer(self.model, inputs, [method], self.processor, self.max_new_tokens)
        except (TypeError, ValueError) as error:
            self.text.value = f"<i>{html.escape(str(error))}</i>"
            return
        assert self.found.trace is not None
        names = step_names(max(self.found.trace.images, key=lambda image: len(image.stages)))
        self.step.options = list(zip(names, range(len(names))))
        self.step.value = len(names) - 1
        self._show()

    def _show(self, change: Any = None) -> None:
        """Draw what was found, as the controls say."""
        if self.found is None or self.found.trace is None:
            return
        picture = self.images[self.image.value]
        options: dict[str, Any] = {"step": self.step.value, "side": self.side}
        note = ""
        try:
            drawn = draw(self.found.trace, picture, self.processor, heat=self.heat.value, **options)
        except ValueError as error:  # nothing was ranked up to this stage
            drawn, note = (
                draw(self.found.trace, picture, self.processor, **options),
                f"<br><i>{html.escape(str(error))}</i>",
            )
        held = io.BytesIO()
        drawn.save(held, "PNG")
        self.picture.value = held.getvalue()
        (text,) = self.found.texts
        self.text.value = f"<b>{html.escape(self.question)}</b><br>{html.escape(text)}{note}"


def _widgets() -> ModuleType:
    try:
        import ipywidgets
    except ImportError:
        raise ImportError("explore needs ipywidgets; pip install 'tokenreduce[notebooks]'") from None
    return ipywidgets
