"""Pages with figures are what the committed measurements give."""

from __future__ import annotations

import json

from scripts import script


def test_streaming():
    made = script("benchmarks/stream.py")
    assert made.PAGE.read_text() == made.page(json.loads(made.DATA.read_text())), (
        "run python benchmarks/stream.py --page"
    )


def test_before_and_inside_the_tower():
    made = script("benchmarks/tower_page.py")
    assert made.PAGE.read_text() == made.page(*made.measured()), "run python benchmarks/tower_page.py"


def test_bits_of_the_cache():
    made = script("benchmarks/cache_bits.py")
    text = made.PAGE.read_text()
    assert text == made.page(text, json.loads(made.DATA.read_text())), "run python benchmarks/cache_bits.py --page"


def test_a_pooled_cache():
    made = script("benchmarks/pooled_cache.py")
    text = made.PAGE.read_text()
    assert text == made.page(text, json.loads(made.DATA.read_text())), "run python benchmarks/pooled_cache.py --page"


def test_serving():
    made = script("benchmarks/serving_page.py")
    text = made.PAGE.read_text()
    assert text == made.page(text, made.measured()), "run python benchmarks/serving_page.py"


def test_what_learning_is_worth():
    made = script("benchmarks/learned_page.py")
    assert made.PAGE.read_text() == made.page(json.loads(made.DATA.read_text())), (
        "run python benchmarks/learned.py --page"
    )
