import os

import numpy as np
import pytest

from tsm_jax import files
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable, progress


def test_irregular_files_are_refused(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/zero", tmp_path, tmp_path / "absent", "a\0b"):
        with pytest.raises(UserError, match="cannot read the list"):
            files.read_text(path, "the list")


def test_text_must_be_utf_8_and_within_the_limit(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfgrow\nshrink\n")
    assert files.read_text(path, "the labels") == "grow\nshrink\n"
    with pytest.raises(UserError, match="exceed the limit of 4"):
        files.read_text(path, "the labels", limit=4)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        files.read_text(path, "the labels")
    assert files.read_text(path, "the list", errors="surrogateescape") == "\udcff\udcfe"


@pytest.mark.parametrize("text", ["[" * 200_000, "{", '{"score": NaN}', "[Infinity]", ""])
def test_invalid_json_is_a_one_line_error(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        files.read_json(path, "the description")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_device_or_pipe_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        files.write_text(tmp_path / "pipe", "text")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "list"
    files.write_text(path, "old\n")

    def interrupted():
        with files.replacing(path) as partial:
            (tmp_path / partial).write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["list"]


def test_an_interrupted_new_folder_leaves_nothing(tmp_path):
    def interrupted():
        with files.new_folder(tmp_path / "model") as folder:
            (tmp_path / folder / "weights").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert os.listdir(tmp_path) == []
    with files.new_folder(tmp_path / "model") as folder:
        (tmp_path / folder / "weights").write_text("whole")
    assert (tmp_path / "model" / "weights").read_text() == "whole"
    with pytest.raises(UserError, match="already exists"), files.new_folder(tmp_path / "model"):
        pass


def test_a_folder_is_replaced_once_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "report"
    path.mkdir()
    (path / "old").write_text("old")
    rename = os.rename

    def fail(source, target):
        if ".partial-" in str(source):
            raise OSError(16, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match="busy"), files.new_folder(path, replace=True):
        pass
    assert os.listdir(tmp_path) == ["report"]
    assert os.listdir(path) == ["old"]
    monkeypatch.undo()
    with files.new_folder(path, replace=True) as folder:
        (tmp_path / folder / "new").write_text("new")
    assert os.listdir(tmp_path) == ["report"]
    assert os.listdir(path) == ["new"]


def test_a_full_disk_is_a_one_line_error():
    with pytest.raises(UserError, match="cannot write"):
        files.write_text("/proc/nowhere/list", "text")


def test_json_refuses_non_finite_numbers(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "metrics.json", {"loss": np.nan})
    assert os.listdir(tmp_path) == []


def test_control_codes_are_escaped():
    assert printable("a\x1b[31mred\x07\nb") == r"a\x1b[31mred\x07\x0ab"
    assert printable("b\udcff.mp4") == r"b\xff.mp4"
    assert printable("\u202egnp.exe") == r"\u202egnp.exe"
    assert printable("日本語 🎬") == "日本語 🎬"


def test_progress_yields_the_items_unchanged(capsys):
    assert list(progress(iter("abc"), "read", 3)) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
