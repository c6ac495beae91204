"""A video in windows is the bare model on the whole video, of which only the kept tokens are left, whenever it is asked."""

from __future__ import annotations

import numpy as np
import pytest
import reduced
import torch
import zoo_oracle
from zoo_processors import BORDER, QWEN, WORD, processor

import tokenreduce as tr
from tokenreduce.eval.tiny_models.common import SIDE

FAMILIES = ("llava", "llava_onevision", "llava_next_video", "video_llava", "qwen2_vl", "qwen2_5_vl")
METHODS = {
    "all": lambda: tr.Uniform(keep=1.0),
    "uniform": lambda: tr.Uniform(keep=0.4),
    "attended": lambda: tr.FasterVLM(keep=0.3),
    "changed": lambda: tr.EVS(keep=0.35),
    "renumbered": lambda: tr.Uniform(keep=0.4, positions="renumber"),
}
QUESTION, STEPS = f"{WORD} {WORD}", 5


def footage(key: str, count: int) -> np.ndarray:
    """(T, H, W, 3) frames that differ, some places more than others."""
    rng = np.random.default_rng(1)
    size = (24, 16) if key in QWEN else (SIDE, SIDE)
    still = rng.integers(1, 255, (1, *size, 3))
    return np.clip(still + rng.normal(0, 40, (count, *size, 3)), 0, 255).astype(np.uint8)


def around(key: str) -> tuple[str, str]:
    """The text in front of the video and behind it."""
    start, end = (BORDER["start"], BORDER["end"]) if key in QWEN else ("", "")
    return f"<s> {WORD} {start}", f"{end} {{question}} {WORD}"


def medium(key: str) -> str:
    return "image" if key == "llava" else "video"


def template(key: str) -> str:
    return around(key)[0] + f"<{medium(key)}>" + around(key)[1]


def whole(key: str, frames: np.ndarray) -> dict:
    """The prompt of all ``frames`` in one call."""
    made, (before, behind) = processor(key), around(key)
    text = before + f"<{medium(key)}>" * (len(frames) if key == "llava" else 1) + behind.replace("{question}", QUESTION)
    if key == "llava":
        return dict(made(text=[text], images=list(frames), return_tensors="pt"))
    about = [{"fps": 1.0, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}]
    return dict(made(text=[text], videos=[frames], do_sample_frames=False, video_metadata=about, return_tensors="pt"))


class Kept:
    """Which columns of the whole prompt the windows of a stream kept, read off their traces."""

    def __init__(self, begin: int) -> None:
        self.end, self.columns = begin, []

    def window(self, trace: tr.Trace) -> list[torch.Tensor]:
        """Columns kept so far with those of the window of ``trace``, and what it wrote behind its frames."""
        return [*self.columns, trace.kept[0] - trace.offset + self.end]

    def go_on(self, trace: tr.Trace) -> None:
        frames = int(trace.images[0].columns[-1]) - trace.offset + 1
        own = trace.kept[0] - trace.offset
        self.columns.append(own[own < frames] + self.end)
        self.end += frames


def expected(model, inputs: dict, visual: list[torch.Tensor], key: str, positions: str):
    ids = inputs["input_ids"][0]
    held = torch.isin(ids, torch.tensor([3 if medium(key) == "image" else 4]))
    columns = torch.cat([(~held).nonzero()[:, 0], *visual]).sort().values
    tokens = zoo_oracle.greedy(model, inputs, STEPS, keep=[columns], positions=positions)[0]
    return tokens, zoo_oracle.logits(model, inputs, keep=[columns], positions=positions, generate=True)[0][-1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", FAMILIES)
def test_questions_at_any_time(key, method):
    model, frames, asked = reduced.model(key), footage(key, 11), []
    heads: list[torch.Tensor] = []
    listening = model.lm_head.register_forward_hook(lambda module, args, out: heads.append(out[0, -1]))
    before = processor(key).tokenizer(around(key)[0])["input_ids"]
    kept = Kept(len(before))
    with tr.stream(model, processor(key), METHODS[method](), window=4, prompt=template(key)) as stream:
        for t, frame in enumerate(frames, start=1):
            stream.add(frame)
            if t in (2, 4, 7, 11):
                heads.clear()
                answer = stream.answer(QUESTION, max_new_tokens=STEPS)
                asked.append((t, answer.tolist(), heads[0], kept.window(stream.trace)))
            if not stream.waiting:
                kept.go_on(stream.trace)
    listening.remove()
    assert not tr.is_wrapped(model)
    for t, answer, logits, visual in asked:
        inputs = whole(key, frames[:t])
        tokens, last = expected(model, inputs, visual, key, "renumber" if method == "renumbered" else "keep")
        torch.testing.assert_close(logits, last, atol=reduced.TOLERANCE, rtol=0)
        assert answer == tokens


GIVEN = {"holitom": {"inner_keep": 1.0}, "uniform": {"at": "pixels"}}
WHERE = [
    (key, m)
    for key in ("llava_onevision", "qwen2_5_vl")
    for m in ("holitom", "dycoke", "evs", "fastvid", "vidcom2", "pool")
]


@pytest.mark.parametrize(("key", "method"), [*WHERE, ("qwen2_5_vl", "uniform"), ("qwen2_5_vl", "tome")])
def test_one_window_is_the_whole_video(key, method):
    model, frames, inputs = reduced.model(key), footage(key, 8), whole(key, footage(key, 8))
    given = {"keep": 0.4, **GIVEN.get(method, {})}
    with tr.wrapped(model, method, **given):
        offline = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    with tr.stream(model, processor(key), method, window=8, prompt=template(key), **given) as stream:
        assert stream.add(frames).answer(QUESTION, max_new_tokens=STEPS).tolist() == offline.tolist()


def columns(stream: tr.Stream) -> list[torch.Tensor]:
    return [x.clone() for layer in stream._growing.cache.layers for x in (layer.keys, layer.values)]


@pytest.mark.parametrize("key", ["llava_onevision", "qwen2_5_vl"])
def test_a_question_leaves_the_cache_as_it_was(key):
    model, frames = reduced.model(key), footage(key, 6)
    with tr.stream(model, processor(key), "evs", keep=0.4, window=4, prompt=template(key)) as stream:
        stream.add(frames)
        before, place = columns(stream), stream._growing.place
        first = stream.answer(QUESTION, max_new_tokens=STEPS)
        assert stream.answer(f"{WORD}", max_new_tokens=2).shape == (2,)
        assert stream.answer(QUESTION, max_new_tokens=STEPS).tolist() == first.tolist()
        assert stream._growing.place is place
        assert all(torch.equal(a, b) for a, b in zip(before, columns(stream), strict=True))


def test_what_is_held_are_kept_tokens_and_a_window():
    key = "llava_onevision"
    model, sizes = reduced.model(key), []
    with tr.stream(model, processor(key), "uniform", keep=4, window=4, prompt=template(key)) as stream:
        text = stream.tokens
        for _ in range(5):
            stream.add(footage(key, 4))
            sizes.append({layer.keys.shape[2] for layer in stream._growing.cache.layers})
            assert stream.waiting == 0
    assert sizes == [{text + 4 * n + 1} for n in range(1, 6)]  # and one newline behind the video, however many windows


@pytest.mark.parametrize("key", ["llava_onevision", "qwen2_5_vl"])
def test_a_history_is_a_mask_that_hides_old_windows(key):
    """What a window sees are the text and the latest windows, as if the whole sequence ran at once under that mask."""
    model, frames, kept = reduced.model(key), footage(key, 20), []
    decoder, caught = zoo_oracle.decoder_of(model), []

    def catch(module, args, kwargs, out):
        caught.append((kwargs["inputs_embeds"], kwargs["position_ids"], out[0]))

    given = {"keep": 6, "window": 4, "prompt": template(key)}
    listening = decoder.register_forward_hook(catch, with_kwargs=True)
    with tr.stream(model, processor(key), "uniform", history=13, **given) as stream:
        text = stream.tokens
        for start in range(0, 20, 4):
            stream.add(frames[start : start + 4])
            kept.append(stream.tokens - text)
        stream.answer(QUESTION, max_new_tokens=1)
    listening.remove()
    newline = int(key == "llava_onevision")
    assert kept == [6 + newline] + [12 + newline] * 4
    embeds, ids = [caught[0][0]], [caught[0][1].expand(*caught[0][1].shape[:-2], 1, -1)]
    part = [torch.full((text,), -1)]
    for i, (x, own, _) in enumerate(caught[1:-1]):
        x, own = x[:, :6], own[..., :6]
        embeds.append(x), ids.append(own), part.append(torch.full((6,), i))
    last = caught[-2]
    tail = torch.cat([last[0][:, 6:], caught[-1][0]], dim=1)
    ids.append(torch.cat([last[1][..., 6:], caught[-1][1]], dim=-1))
    part = torch.cat([*part, torch.full((tail.shape[1],), 4)])
    embeds, ids = torch.cat([*embeds, tail], dim=1), torch.cat(ids, dim=-1)
    place = torch.arange(len(part))
    # when window i runs, i - 1 and i - 2 are in the cache; behind it, two are left
    recent = torch.where(place < len(part) - caught[-1][0].shape[1], part - 2, part - 1)
    sees = (place[:, None] >= place) & ((part[None] < 0) | (part[None] >= recent[:, None]))
    with torch.no_grad():
        out = decoder(inputs_embeds=embeds, position_ids=ids, attention_mask=torch.where(sees, 0.0, -1e9)[None, None])[
            0
        ]
    torch.testing.assert_close(caught[-1][2], out[:, -caught[-1][2].shape[1] :], atol=reduced.TOLERANCE, rtol=0)


def test_a_chunk_that_ends_with_a_picture_goes_on_behind_what_is_left():
    """Renumbered ids are counted on from the last kept token, also where columns behind it are gone."""
    model = reduced.model("llava")
    with tr.stream(
        model, processor("llava"), "first", keep=3, positions="renumber", window=2, prompt=template("llava")
    ) as s:
        s.add(footage("llava", 2))
        assert s._growing.place.following == s.tokens


def test_other_families_are_refused_by_name():
    for key in ("qwen3_vl", "internvl", "smolvlm"):
        model = reduced.model(key)
        with pytest.raises(ValueError, match=f"{key} model takes a video in one call only.*llava_onevision"):
            tr.stream(model, processor("llava"), "evs")
        assert not tr.is_wrapped(model)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "holitom"}, "stage 'llm'.*inner_keep=1.0"),
        ({"method": "cdpruner"}, "reads the question"),
        ({"method": "evs", "window": 0}, "window=0"),
        ({"method": "evs", "window": 3}, "window=3.*multiple of 2"),
        ({"method": "evs", "fps": 0}, "fps=0"),
        ({"method": "evs", "history": 0}, "history=0"),
        ({"method": "evs", "prompt": "<video> what"}, "{question}"),
        ({"method": "evs", "prompt": "{question}"}, "0 placeholders"),
        ({"method": "evs", "prompt": None}, "no chat template"),
    ],
)
def test_what_is_refused_leaves_the_model_alone(given, said):
    model = reduced.model("qwen2_5_vl")
    with pytest.raises(ValueError, match=said):
        tr.stream(model, processor("qwen2_5_vl"), **{"prompt": template("qwen2_5_vl"), **given})
    assert not tr.is_wrapped(model)


def test_what_a_stream_refuses():
    key = "llava_onevision"
    stream = tr.stream(reduced.model(key), processor(key), "evs", window=2, prompt=template(key))
    with pytest.raises(ValueError, match="no frame yet"):
        stream.ask(QUESTION)
    stream.add(footage(key, 3))
    with pytest.raises(ValueError, match="num_beams=2"):
        stream.ask(QUESTION, num_beams=2)
    with pytest.raises(ValueError, match="frame 3 is 16 x 8 pixels after frames of 32 x 32"):
        stream.add(np.zeros((8, 16, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="float32"):
        stream.add(torch.zeros(3, SIDE, SIDE))
    stream.history = 1
    with pytest.raises(ValueError, match="history=1 tokens, but 2 were kept of one window"):
        stream.add(footage(key, 1))
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.ask(QUESTION)
