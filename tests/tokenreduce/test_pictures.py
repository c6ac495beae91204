"""Pictures and videos come from files in one way, and a prompt may hold several of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce.cli import app
from tokenreduce.eval import demo
from tokenreduce.eval.tasks.demo import doc_to_visual
from tokenreduce.loading import model_inputs
from tokenreduce.pictures import as_rgb, open_picture, open_pictures, open_video

ORIENTATION = 0x0112


def halves(width: int = 60, height: int = 40) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def turned(tmp_path):
    """A photograph taken with the camera upside down."""
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[ORIENTATION] = 3
    halves().save(path, exif=exif)
    return path


def test_the_exif_orientation_is_applied_everywhere(turned):
    upright = np.asarray(open_picture(turned))
    assert upright[20, 10].tolist() == [0, 0, 255]
    with Image.open(turned) as raw:
        assert np.array_equal(np.asarray(doc_to_visual({"pictures": [raw]})[0]), upright)
    quarter = Image.Exif()
    quarter[ORIENTATION] = 6
    halves().save(turned, exif=quarter)
    assert open_picture(turned).size == (40, 60)


@pytest.mark.parametrize("highest", [65535, 4095])
def test_grey_of_16_bits_is_scaled_by_its_range(tmp_path, highest):
    ramp = np.linspace(0, highest, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (8, 1))).save(tmp_path / "grey.png")
    for opened in (open_picture(tmp_path / "grey.png"), as_rgb(Image.open(tmp_path / "grey.png"))):
        assert opened.mode == "RGB"
        values = np.asarray(opened)[4, :, 1].astype(int)
        assert (values[0], values[-1]) == (0, 255)
        assert np.abs(values - np.linspace(0, 255, 64)).max() <= 1


def test_other_modes():
    flat = Image.fromarray(np.full((4, 4), 3.5, np.float32))
    assert np.asarray(as_rgb(flat)).max() == 0
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        assert as_rgb(halves().convert(mode)).mode == "RGB"


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 2, 1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [np.asarray(p)[0, 0, 0] for p in open_pictures(tmp_path)] == [1, 2, 10]
    assert [np.asarray(p)[0, 0, 0] for p in open_video(tmp_path, 2)] == [1, 10]
    assert len(open_video(tmp_path, 9)) == 3
    (tmp_path / "frame3.png").write_text("half written")
    with pytest.raises(ValueError, match=r"frame3\.png.*PNG or JPEG"):
        open_pictures(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="without pictures"):
        open_pictures(empty)


def film(path, count: int = 12) -> None:
    frames = [Image.new("RGB", (64, 64), (20 * n, 0, 0)) for n in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def test_frames_are_spread_evenly(tmp_path):
    film(tmp_path / "film.gif")
    assert [round(np.asarray(f)[0, 0, 0] / 20) for f in open_video(tmp_path / "film.gif", 4)] == [1, 4, 7, 10]
    with pytest.raises(ValueError, match="frames=0"):
        open_video(tmp_path / "film.gif", 0)
    (tmp_path / "film.mp4").write_text("no video")
    with pytest.raises(ValueError, match="video"):
        open_video(tmp_path / "film.mp4")


def test_a_coded_video_is_decoded(tmp_path):
    av = pytest.importorskip("av", reason="pip install av")
    with av.open(str(tmp_path / "film.mp4"), "w") as box:
        stream = box.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for n in range(12):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (20 * n, 0, 0)))
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    found = open_video(tmp_path / "film.mp4", 4)
    assert [round(np.asarray(f)[32, 32, 0].item() / 20) for f in found] == [1, 4, 7, 10]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pictures"
    made.mkdir()
    for number, question in enumerate(demo.questions("test", 3, per_image=1)):
        question.image.save(made / f"{number}.png")
    return made


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_commands_take_several_pictures_folders_and_videos(command, folder, tmp_path):
    film(tmp_path / "film.gif", 5)
    three = ["--image", folder / "0.png", "--image", folder / "1.png", "--image", folder / "2.png"]
    ways = {"files": (three, 3), "folder": (["--image", folder], 3), "video": (["--video", tmp_path / "film.gif"], 1)}
    for name, (given, count) in ways.items():
        out = tmp_path / (f"{name}.html" if command == "inspect" else f"{name}.json")
        more = ["--out", out, "--side", 200] if command == "inspect" else ["--no-compare", "--json", out, "--draw", out]
        if command == "run":
            more[-1] = tmp_path / f"{name}.png"
        result = call(command, "--model", "demo", "--method", "fastervlm", "--keep", "0.25", *given, "--prompt",
                      "how many objects are there?", "--max-new-tokens", 1, *more)  # fmt: skip
        assert result.exit_code == 0, result.output
        text = out.read_text()
        if command == "run":
            assert len(json.loads(text)["report"]["tokens_kept"][0]) == count
            assert Image.open(more[-1]).width >= 600
        else:
            data = json.loads(text[text.index('id="data">') + 10 : text.rindex("</script>\n<script>")])
            assert len(data["pictures"]) == count
            last = data["pictures"][-1]
            assert len(last["places"]) == len(last["steps"][-1]["owner"]) == 144 * (5 if name == "video" else 1)
            assert max(box[2] for box in last["places"]) <= last["width"]
            assert last["names"][-1].startswith("frame 4, ") == (name == "video")


def test_a_video_beside_pictures_is_refused_where_frames_are_images(folder, tmp_path):
    film(tmp_path / "film.gif")
    result = call("run", "--model", "demo", "--method", "random", "--image", folder, "--video", tmp_path / "film.gif")
    assert result.exit_code == 2
    assert "all frames of one video" in " ".join(result.output.split())


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_model_of_videos_is_given_a_video(tmp_path):
    from zoo_processors import processor

    from tokenreduce.eval import tiny_models as zoo

    film(tmp_path / "film.gif")
    frames, model = open_video(tmp_path / "film.gif", 3), zoo.build("llava_onevision")
    inputs = model_inputs(processor("llava_onevision"), [halves(), frames], "word", model)
    assert inputs["pixel_values_videos"].shape[1] == 3
    with tr.wrapped(model, "random", keep=0.5):
        model(**inputs)
        trace = tr.trace(model)
    assert [image.layout.frames for image in trace.images] == [1, 3]
    assert trace.show([halves(), frames], processor("llava_onevision"), side=200).width > 200
