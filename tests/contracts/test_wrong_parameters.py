"""Contract: what no parameter of any method can mean is refused when it is given, naming the parameter."""

from __future__ import annotations

import dataclasses

import pytest

from tokenreduce.registry import registry

CASES = [(name, field.name) for name, cls in registry().items() for field in dataclasses.fields(cls)]


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_what_is_no_value_at_all_is_refused(name, parameter):
    for nonsense in ("no such thing", object(), float("nan")):
        with pytest.raises((TypeError, ValueError), match=parameter):
            registry()[name](**{parameter: nonsense})


@pytest.mark.parametrize(("name", "parameter"), [("aim", "steps"), ("expediting", "iterations")])
def test_what_would_run_forever_is_refused(name, parameter):
    with pytest.raises(ValueError, match=f"{parameter}=1000000000; allowed: 1 to 1000"):
        registry()[name](**{parameter: 10**9})
