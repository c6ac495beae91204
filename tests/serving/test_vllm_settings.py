"""What is refused in vLLM is refused by name, before a server is up; position ids of pictures of which a part is left."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tokenreduce.adapters.serving.vllm import plugin
from tokenreduce.adapters.serving.vllm.positions import grid_ids, laid_out, settled, with_ids
from tokenreduce.adapters.serving.vllm.settings import Settings, parted, read, written
from tokenreduce.eval import demo
from tokenreduce.eval.tiny_models.qwen import Qwen2_5VL
from tokenreduce.registry import registry


def settings(**asked) -> Settings:
    model, _ = demo.load()
    model.config.tokenreduce = asked
    return Settings(model.config, keeps_positions=False)


def test_budgets_are_of_the_same_kind_after_their_journey():
    for keep in (0.3, 1.0, 1, 64):
        row = read(written(keep, 2)[1])
        assert (row, type(row)) == (keep, type(keep))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"method": "fastv"}, r"'fastv' acts at stage 'llm'.*paged cache"),
        ({"method": "pixelprune"}, r"'pixelprune' acts at stage 'pixels'.*how many tokens"),
        ({"method": "tome", "keep": 0.5}, r"'tome' acts at stage 'encoder'"),
        ({"method": "learned_selector", "keep": 0.5}, "'learned_selector' learns.*allowed.*without weights"),
        ({"method": "cdpruner"}, "'cdpruner' looks at the text"),
        ({"method": "prumerge", "keep": "auto"}, "keep='auto'"),
        ({"method": "hiprune", "positions": "keep"}, r"positions='keep'.*allowed: positions='renumber'"),
        ({"method": "hiprune", "kep": 0.5}, "kep"),
        ({"method": "nothing"}, "'nothing' is unknown"),
        ({"keep": 0.5}, "allowed: a method"),
    ],
)
def test_what_is_not_served_is_refused_with_the_reason(asked, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        settings(**asked)


def test_the_page_names_the_methods_that_are_served():
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    named = set(re.findall(r"`(\w+)`", page[page.index("Methods: ") : page.index("and the baselines:")]))
    found = set()
    for name, cls in registry().items():
        config = Qwen2_5VL().config()
        config.tokenreduce = {"method": name, "keep": 0.25}
        try:
            Settings(config, keeps_positions=True)
        except ValueError:
            continue
        found |= {name} if cls.paper else set()
    assert named == found


def test_a_request_says_its_budget_and_nothing_else():
    assert parted({"tr_keep": 8, "size": 3}) == (8, {"size": 3})
    with pytest.raises(ValueError, match=r"'tr_method'.*'tr_keep'"):
        parted({"tr_method": "pool"})
    assert settings(method="hiprune", keep=0.5).keep(None) == 0.5
    with pytest.raises(ValueError, match=r"keep=1\.5"):
        settings(method="hiprune").keep(1.5)


def test_a_family_that_is_not_served_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(plugin, "is_multimodal", lambda architecture: architecture != "Qwen2ForCausalLM")
    asked, plain = SimpleNamespace(tokenreduce={"method": "hiprune"}), SimpleNamespace()
    assert plugin.chosen("LlavaForConditionalGeneration", asked) == "TokenReduceLlavaForConditionalGeneration"
    assert plugin.chosen("LlavaForConditionalGeneration", plain) == "LlavaForConditionalGeneration"
    assert plugin.chosen("Qwen2ForCausalLM", asked) == "Qwen2ForCausalLM"  # the language model inside
    with pytest.raises(
        ValueError, match=r"MllamaForConditionalGeneration is not served.*LlavaForConditionalGeneration"
    ):
        plugin.chosen("MllamaForConditionalGeneration", asked)
    with pytest.raises(ValueError, match=r"Gemma3ForConditionalGeneration is not served.*both ways.*transformers"):
        plugin.chosen("Gemma3ForConditionalGeneration", asked)


def test_survivors_sit_where_they_sat_and_text_goes_on_behind_the_whole_picture():
    ids = grid_ids(2, 3, 4, step=2.0)  # 24 tokens, of which four are left
    place = torch.tensor([0, 5, 13, 22])
    positions = laid_out(2 + 4 + 3, [(2, 4, ids)])
    media = torch.tensor([False] * 2 + [True] * 4 + [False] * 3)
    rows = with_ids(torch.ones(4, 8, dtype=torch.bfloat16), ids[:, place] + 300)
    (left,), found = settled(positions, media, 0, [rows])
    assert left.shape == (4, 8)
    assert torch.equal(found[:, 2:6], ids[:, place] + 300 + 2)  # ids above 256 survive half precision
    assert found[:, :2].tolist() == [[0, 1]] * 3
    assert found[:, 6:].tolist() == [[6, 7, 8]] * 3  # behind the largest id of the picture, 3, dropped or not

    whole, half = with_ids(torch.ones(4, 8), ids[:, place]), positions
    for first in (0, 4):  # in two chunks, the border in the picture
        _, half = settled(half, media, first, [whole[: 4 - 2]] if first == 0 else [whole[2:]])
    assert torch.equal(half[:, 2:6], ids[:, place] + 2)
