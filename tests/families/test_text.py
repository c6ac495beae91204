"""The text that a method is shown is what stands around each picture: embedded, and as the language model holds it."""

from __future__ import annotations

import pytest
import reduced
import torch
import zoo_oracle
from prompt_readers import LAYER, reader

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.signals import Hidden, Text

SPANS = ("after", "before", "all", "last")
CASES = [(key, kind) for key in reduced.FAMILIES for kind in ("mixed", "right", "videos") if kind in zoo.kinds(key)]


def read(model, inputs, stage, *needs, **call):
    """Per picture of the trace, what was shown of it; and the trace."""
    method, seen = reader(stage, *needs)
    with tr.wrapped(model, method), torch.no_grad():
        model(**inputs, **call)
        trace = tr.trace(model)
    return by_picture(seen, trace), trace


def by_picture(seen, trace):
    bundles: dict = {}
    for i, image in enumerate(trace.images):
        bundles.setdefault(image.layout, []).append(i)
    found: list = [None] * len(trace.images)
    for tokens, members in zip(seen, bundles.values(), strict=True):
        for row, i in enumerate(members):
            found[i] = {
                signal: value[row]
                if not isinstance(signal, Text)
                else (value.features[row][value.valid[row]], value.column[row][value.valid[row]])
                for signal, value in tokens.signals.items()
            }
    return found


def named(config: dict) -> set[int]:
    """Ids that a configuration, or one inside it, names."""
    own = {x for name, x in config.items() if "_token_i" in str(name) and isinstance(x, int)}
    return own.union(*(named(inner) for inner in config.values() if isinstance(inner, dict)))


def expected(span, image, visual, real, ids=None, special=frozenset()):
    """Columns of the text around ``image``, found token by token."""
    first, last = int(image.columns.min()), int(image.columns.max())
    columns = [c for c in range(len(real)) if real[c] and not visual[c]]
    if ids is not None:
        columns = [c for c in columns if int(ids[c]) not in special]
    if span == "last":
        return columns[-1:]
    return [c for c in columns if span == "all" or (c > last if span == "after" else c < first)]


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_embeddings_of_the_text_around_each_picture(key, kind):
    model = reduced.model(key)
    inputs = zoo.inputs(key, kind, model)
    needs = [Text(span) for span in SPANS] + [Text(span, special=False) for span in ("after", "all")]
    found, trace = read(model, inputs, "projector", *needs, Hidden())
    rows, mask, special = (
        zoo_oracle.caught(model, inputs),
        inputs["attention_mask"].bool(),
        named(model.config.to_dict()),
    )
    assert {0, 1, 2, 3} <= special
    assert key.startswith("paligemma") or any(
        len(expected("before", image, trace.visual[0], mask[0])) for image in trace.images
    )
    for shown, image in zip(found, trace.images, strict=True):
        b = image.sample
        at = {int(c): i for i, c in enumerate(rows[b].columns)}
        for signal in needs:
            ids = None if signal.special else inputs["input_ids"][b]
            columns = expected(signal.span, image, trace.visual[b], mask[b], ids, special)
            features, places = shown[signal]
            assert places.tolist() == [at[c] for c in columns]  # padding is not counted
            assert torch.equal(features, rows[b].embeds[places])
        assert torch.equal(shown[Hidden()], rows[b].embeds[[at[int(c)] for c in image.columns]])


@pytest.mark.parametrize(("key", "kind"), [case for case in CASES if case[1] != "right"])
def test_hidden_states_of_a_layer(key, kind):
    model = reduced.model(key)
    inputs = zoo.inputs(key, kind, model)
    normed = Hidden("final")
    needs = (Hidden(), normed, *(Text(span, of) for span in SPANS for of in (Hidden(), normed)))
    found, trace = read(model, inputs, "llm", *needs)
    entered = []
    handle = (
        decoder_of(model)
        .layers[LAYER]
        .register_forward_pre_hook(
            lambda layer, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    )
    with torch.no_grad():
        model(**inputs)
        handle.remove()
        states = {Hidden(): entered[0], normed: decoder_of(model).norm(entered[0])}
    mask = inputs["attention_mask"].bool()
    for shown, image in zip(found, trace.images, strict=True):
        b = image.sample
        for signal in needs:
            if isinstance(signal, Hidden):
                torch.testing.assert_close(shown[signal], states[signal][b, image.columns], atol=1e-4, rtol=0)
                continue
            columns = expected(signal.span, image, trace.visual[b], mask[b])
            torch.testing.assert_close(shown[signal][0], states[signal.of][b, columns], atol=1e-4, rtol=0)


@pytest.mark.parametrize("key", ["llava", "qwen3_vl", "gemma3"])
def test_text_behind_an_earlier_cut(key):
    """Where tokens are gone already, text sits in other places of what the language model holds."""
    model = reduced.model(key)
    inputs = zoo.inputs(key, "single", model)
    method, seen = reader("llm", Text(), Hidden())
    entered = []
    with tr.wrapped(model, tr.Uniform(keep=0.5), method), torch.no_grad():
        layer = decoder_of(model).layers[LAYER]
        handle = layer.register_forward_pre_hook(
            lambda layer, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
            prepend=True,
        )
        model(**inputs)
        handle.remove()
        (image,) = (trace := tr.trace(model)).images
    (tokens,), (hidden,) = seen, entered
    kept, columns = image.seats(LAYER - 1), torch.arange(trace.visual.shape[1])
    assert len(kept) < image.tokens_in
    living = columns[~trace.visual[0] | torch.isin(columns, kept)]
    visual = torch.isin(living, kept)
    rows = tokens.signals[Text()]
    assert torch.equal(rows.features[rows.valid], hidden[0, ~visual])
    assert torch.equal(tokens.signals[Hidden()][0], hidden[0, visual])
