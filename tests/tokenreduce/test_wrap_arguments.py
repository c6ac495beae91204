"""What is given to ``wrap`` in another form than it takes: the error shows the right call."""

from __future__ import annotations

import warnings

import pytest
from models import llava

import tokenreduce as tr


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.mark.parametrize(
    ("methods", "parameters", "words"),
    [
        ((["fastervlm", "fastv"],), {}, "tr.wrap(model, tr.FasterVLM(keep=0.5), tr.FastV(keep=0.5))"),
        (([tr.FastV(keep=0.25)],), {}, "tr.wrap(model, FastV(keep=0.25"),
        (("hiprune", 0.25), {}, "tr.wrap(model, 'hiprune', keep=0.25)"),
        (("hiprune", 64), {}, "tr.wrap(model, 'hiprune', keep=64)"),
        (("hiprune", None), {}, "tr.wrap(model, 'hiprune', keep=0.25)"),
        (("hiprune",), {"keep": None}, "keep=1.0 for every token"),
        ((), {}, "needs at least one method"),
    ],
)
def test_the_error_shows_the_call(model, methods, parameters, words):
    with pytest.raises(TypeError) as caught:
        tr.wrap(model, *methods, **parameters)
    assert words in str(caught.value)
    assert not tr.is_wrapped(model)


def test_one_token_is_warned_of_and_all_are_not(model):
    with pytest.warns(UserWarning, match=r"one token per image.*keep=1\.0"), tr.wrapped(model, "hiprune", keep=1):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for keep in (1.0, 2, 0.5):
            with tr.wrapped(model, "hiprune", keep=keep):
                pass
