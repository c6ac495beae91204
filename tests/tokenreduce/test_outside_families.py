"""Models from elsewhere: named as one that is served, or with a family that an installed package brings."""

from __future__ import annotations

import importlib
import sys

import pytest
from models import llava, prompt
from test_packaging import ROOT, build, python
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

import tokenreduce as tr
from tokenreduce.adapters import registry
from tokenreduce.adapters.families.refused import BY_TYPE, REFUSALS

PACKAGE = ROOT / "tests" / "outside_family"


class ShutterConfig(LlavaConfig):
    model_type = "shutter"


class ShutterForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = ShutterConfig


def shutter() -> LlavaForConditionalGeneration:
    """LLaVA under a name nobody knows."""
    known = llava()
    own = ShutterForConditionalGeneration(ShutterConfig(**known.config.to_dict() | {"model_type": "shutter"})).eval()
    own.load_state_dict(known.state_dict())
    own.generation_config = known.generation_config
    return own


# ---------------------------------------------------------------------- served or refused


@pytest.mark.parametrize("model_type", KNOWN)
def test_every_type_of_transformers_is_served_or_refused_with_a_reason(model_type):
    """A type that a newer release brings has to be read before that release is allowed."""
    if model_type in registry.families():
        return
    refusal = registry.refused()[model_type]
    assert len(refusal.reason.split()) > 3
    assert refusal.instead.split()[0] in ("choose", "hand", "keep", "run", "state", "take", "try", "wrap")
    why = registry.why_not(model_type)
    assert refusal.reason in why
    assert refusal.instead in why


def test_no_type_is_served_and_refused():
    assert not registry.refused().keys() & registry.families().keys()
    assert not {row["model_type"] for row in tr.refused()} & {row["model_type"] for row in tr.families()}
    assert len(BY_TYPE) == sum(len(refusal.types) for refusal in REFUSALS)  # each type stands once


def test_a_family_takes_its_type_off_the_refused_ones(monkeypatch):
    assert "fuyu" in registry.refused()
    monkeypatch.setitem(registry._FAMILIES, "fuyu", registry.families()["llava"])
    assert "fuyu" not in registry.refused()


class Named:
    """What errors look at: a configuration with a type."""

    def __init__(self, model_type: str) -> None:
        self.config = PreTrainedConfig()
        self.config.model_type = model_type


def test_wrapping_a_refused_type_raises_its_reason():
    with pytest.raises(ValueError, match=r"type 'fuyu' .*no vision tower.*Instead, hand its processor"):
        tr.wrap(Named("fuyu"), "hiprune", keep=0.5)
    with pytest.raises(ValueError, match=r"like:llava.*no vision tower.*Instead"):
        tr.wrap(Named("fuyu"), "hiprune", keep=0.5, family="like:llava")


def test_an_unknown_type_is_told_the_ways_on():
    with pytest.raises(ValueError, match=r"'shutter'.*family='like:\w+'.*tokenreduce doctor.*adding_a_family"):
        tr.wrap(shutter(), "hiprune", keep=0.5)


# ---------------------------------------------------------------------- like another


def test_a_similar_model_is_wrapped_like_the_one_it_resembles():
    known, own = llava(), shutter()
    inputs = prompt(known, [1, 2], "left")
    with tr.wrapped(known, "hiprune", keep=0.5), tr.wrapped(own, "hiprune", keep=0.5, family="like:llava"):
        expected = known.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert own.generate(**inputs, max_new_tokens=3, do_sample=False).tolist() == expected.tolist()
        assert tr.report(own).tokens_kept == tr.report(known).tokens_kept == [[8], [8, 8]]


def test_what_a_model_lacks_is_listed_at_once():
    own = shutter()
    own.config.image_token_id = 5000
    own.model.bridge = own.model.multi_modal_projector
    del own.model.multi_modal_projector
    with pytest.raises(ValueError, match="it lacks: ") as raised:
        tr.wrap(own, "hiprune", keep=0.5, family="like:llava")
    for part in (
        "like:llava",
        "multi_modal_projector",
        "id 5000 is no row of the 61 input embeddings",
        "adding_a_family",
    ):
        assert part in str(raised.value)
    assert not tr.is_wrapped(own)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llava", "allowed: 'like:NAME'"),
        ("like:lava", "Did you mean 'like:llava'"),
        ("like:timm", "allowed: 'like:NAME'"),
        ("like:qwen2_vl", "does not fit this Shutter"),
    ],
)
def test_other_names_are_refused(name, said):
    with pytest.raises(ValueError, match=said):
        tr.wrap(shutter(), "hiprune", keep=0.5, family=name)


def test_a_served_type_needs_no_other_family():
    with pytest.raises(ValueError, match="served as it is: leave family out"):
        tr.wrap(llava(), "hiprune", keep=0.5, family="like:llava_next")


# ---------------------------------------------------------------------- a package of one's own

RUN = """
import torch
import tokenreduce as tr
from postcard.model import tiny

row = next(row for row in tr.families() if row["model_type"] == "postcard")
assert row["kind"] == "VLM" and "SigLIP tower" in row["remarks"], row
model, stamps = tiny(), [3] * 16
ids = torch.tensor([[0] * 16 + [1, *stamps, 20, 21], [1, *stamps, 30, *stamps, 31]])
inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "pixel_values": torch.randn(3, 3, 32, 32)}
bare = model(**inputs).logits
with tr.wrapped(model, "hiprune", keep=1.0):
    assert torch.equal(model(**inputs).logits, bare)
for method in ("hiprune", "fastv"):
    with tr.wrapped(model, method, keep=0.25):
        cached = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False), cached)
        print(method, tr.report(model).tokens_kept)
        alone = {"input_ids": ids[:1, 16:], "pixel_values": inputs["pixel_values"][:1]}
        assert torch.equal(model.generate(**alone, max_new_tokens=4, do_sample=False)[0, -4:], cached[0, -4:])
"""


def test_a_family_from_an_installed_package(tmp_path):
    """Built and installed as anybody's package is, and found by its entry point without a word in this one."""
    site = build(PACKAGE, "wheel", tmp_path)
    assert python(RUN, tmp_path, site, ROOT).splitlines() == ["hiprune [[4], [4, 4]]", "fastv [[4], [4, 4]]"]


def test_the_page_shows_the_package_as_it_is():
    page = (ROOT / "docs" / "adding_a_family.md").read_text()
    assert (PACKAGE / "postcard" / "family.py").read_text() in page
    metadata = (PACKAGE / "pyproject.toml").read_text()
    assert metadata[metadata.index("[project.entry") : metadata.index("[tool")].strip() in page


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """Let an installed package bring a family; its code and its metadata are real files."""

    def bring(code: str) -> None:
        (tmp_path / "brought_family.py").write_text(code)
        info = tmp_path / "brought-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nbrought = brought_family\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "brought_family", raising=False)
        importlib.invalidate_caches()
        registry._of_packages.cache_clear()

    yield bring
    registry._of_packages.cache_clear()


def test_a_package_that_takes_over_a_served_type_is_refused(brought):
    before = registry.families()["llava"]
    brought(
        "from tokenreduce.adapters.families.llava import Llava\n"
        "class Other(Llava):\n    model_types = ('llava',)\n    remarks = ''\n"
    )
    with pytest.raises(ValueError, match=r"'brought' of brought.*served here: llava; allowed: types of its own"):
        registry.families()
    assert registry._FAMILIES["llava"] is before


def test_a_package_that_cannot_be_imported_is_named(brought):
    brought("import nothing_of_this_name\n")
    with pytest.raises(ValueError, match=r"'brought' of brought .*cannot be imported.*nothing_of_this_name.*uninstall"):
        tr.families()
