"""Two videos in one prompt, beside one with a picture and a video and one with neither: each video has its own budget."""

from __future__ import annotations

import pairs
import pytest

from tokenreduce.eval import tiny_models as zoo

METHODS = ("evs", "holitom", "fastvid", "longvlm")


@pytest.mark.parametrize(
    "key",
    [
        "qwen2_5_vl",
        *(pytest.param(k, marks=pytest.mark.long) for k in ("llava_onevision", "qwen3_vl", "llava_next_video")),
    ],
)
def test_videos_of_one_prompt_are_reduced_each(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.KINDS, "several videos", ([["v", "v"], ["i0", "v"], []], "left"))
    assert len(zoo.case(key, "several videos", pairs.reduced.model(key)).visuals[0]) == 2
    for name in METHODS:
        assert pairs.verdict(key, name, "several videos") == pairs.WORKS, name
