"""``--json`` and the files behind it: nothing is lost, replaced or written where it was not meant to be."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.cli.app import print_table
from tokenreduce.cli.output import JsonOutput, check_picture
from tokenreduce.files import replacing

RUN = ("run", "--model", "demo", "--method", "uniform", "--keep", "0.25", "--no-compare", "--max-new-tokens", "1")


def test_standard_output_holds_json_alone_and_people_read_standard_error():
    done = CliRunner().invoke(app, [*RUN, "--json", "-"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["report"]["tokens_kept"] == [[36]]
    assert "answer" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no /dev/stdout here")
def test_a_name_of_standard_output_is_standard_output():
    code = (
        "from pathlib import Path; from tokenreduce.cli.output import JsonOutput;"
        "JsonOutput('run', Path('/dev/stdout')).write({'a': 1})"
    )
    before = os.stat("/dev/stdout", follow_symlinks=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"kind": "tokenreduce run", "a": 1}
    assert os.path.samestat(before, os.stat("/dev/stdout", follow_symlinks=False))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    JsonOutput("run", pipe).write({"a": 1})
    reader.join(20)
    assert json.loads(got[0])["a"] == 1
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "there/numbers.json")
    for number in (1, 2):
        JsonOutput("run", link).write({"a": number})
        assert link.is_symlink()
        assert json.loads((tmp_path / "there/numbers.json").read_text())["a"] == number


@pytest.mark.parametrize("theirs", ["not JSON", '{"kind": "tokenreduce bench"}', "[1]"])
def test_a_file_of_others_is_refused_without_force(tmp_path, theirs):
    file = tmp_path / "numbers.json"
    file.write_text(theirs)
    with pytest.raises(ValueError, match="--force"):
        JsonOutput("run", file)
    assert file.read_text() == theirs
    JsonOutput("run", file, force=True).write({"a": 1})
    assert json.loads(file.read_text())["a"] == 1
    JsonOutput("run", file)  # now it is this command's own


@pytest.mark.parametrize(
    ("name", "told"), [("numbers.txt", "ending in .json"), ("no/where.json", "make it first"), ("", "is a folder")]
)
def test_where_no_json_can_go_is_said_before_the_run(tmp_path, name, told, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    done = CliRunner().invoke(app, [*RUN, "--json", str(tmp_path / name)])
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.split())


def test_a_folder_that_takes_no_files_is_said_before_the_run(tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", full)
    for check in (check_picture, lambda path: JsonOutput("run", path.with_suffix(".json"))):
        with pytest.raises(ValueError, match="Permission denied"):
            check(tmp_path / "kept.png")


def test_a_picture_of_no_known_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.png"):
        check_picture(tmp_path / "kept.docx")


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_new_files_get_the_umask_and_replaced_ones_keep_their_permissions(tmp_path):
    before = os.umask(0o077)
    try:
        with replacing(tmp_path / "file") as file:
            file.write(b"1")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        (tmp_path / "file").chmod(0o664)
        with replacing(tmp_path / "file") as file:
            file.write(b"2")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o664
    assert (tmp_path / "file").read_bytes() == b"2"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(TypeError), replacing(tmp_path / "file") as file:
        file.write("no bytes")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_tables_are_not_cut_in_a_pipe(capsys):
    rows = [{f"column {number}": f"{number}.123456789" for number in range(20)}]
    print_table(rows, "wide")
    printed = capsys.readouterr().out
    assert all(value in printed for value in rows[0].values())
    assert "…" not in printed


def test_control_c_is_exit_code_130(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenreduce.methods", stop)
    assert CliRunner().invoke(app, ["methods"]).exit_code == 130
