from __future__ import annotations

import os
from pathlib import Path

import pytest

from tsm_jax.data.lists import ClipEntry, read_frame_list, read_video_list
from tsm_jax.errors import UserError


@pytest.fixture
def write(tmp_path: Path):
    def write_list(text: str) -> Path:
        path = tmp_path / "clips.list"
        path.write_bytes(text.encode())
        return path

    return write_list


def test_video_list(write):
    path = write("\nabseiling/a.mp4 0\r\n  a dir/my clip.mp4\t399  \n\n/abs/c.mp4 7")
    assert read_video_list(path, prefix="root", num_classes=400) == [
        ClipEntry("root/abseiling/a.mp4", 0, None),
        ClipEntry("root/a dir/my clip.mp4", 399, None),
        ClipEntry("/abs/c.mp4", 7, None),
    ]


def test_suffix_is_appended_as_it_is(write):
    path = write("v_Archery_g01_c01 2")
    (entry,) = read_video_list(path, suffix=".avi", num_classes=101)
    assert entry == ClipEntry("v_Archery_g01_c01.avi", 2, None)


def test_frame_list(write):
    path = write("abseiling/a b_000044.mp4 300 0\n/abs/c 1 7\n")
    assert read_frame_list(path, prefix="/root", num_classes=8) == [
        ClipEntry("/root/abseiling/a b_000044.mp4", 0, 300),
        ClipEntry("/abs/c", 7, 1),
    ]


def test_byte_order_mark_and_foreign_encoding(tmp_path: Path):
    path = tmp_path / "clips.list"
    path.write_bytes(b"\xef\xbb\xbfa.mp4 0\nb\xe9.mp4 1\n")
    first, second = read_video_list(path, num_classes=2)
    assert first.path == "a.mp4"
    assert second.path.encode(errors="surrogateescape") == b"b\xe9.mp4"


def test_video_whose_name_ends_in_a_number(write, tmp_path: Path):
    (tmp_path / "clip 7").touch()
    (entry,) = read_video_list(write("clip 7 3"), prefix=str(tmp_path), num_classes=4)
    assert (entry.path, entry.label) == (str(tmp_path / "clip 7"), 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.mp4 0\nb.mp4", "line 2"),
        ("a.mp4 zero", "line 1: the label 'zero' is not an integer"),
        ("\n\na.mp4 4", "line 3: the label 4 is outside 0..3; correct it or set config.model"),
        ("a.mp4 -1", "outside 0..3"),
        ("a.mp4 ٣", "is not an integer"),
        ("a.mp4 0_1", "is not an integer"),
        ("a.mp4 +1", "is not an integer"),
        ("a.mp4 1.0", "is not an integer"),
        ("a.mp4 1" + "0" * 4000, "is not an integer"),
        ("a.mp4 300 0", "config.data.source=frames"),
        ("b.mp4 0\na\0b.mp4 1", "line 2: contains a NUL byte"),
        ("a" * 5000 + ".mp4 1", "line 1: has 5006 characters"),
        ("\x1b]0;x\x07.mp4 7", "the label 7"),
        ("a.mp4 1\n\nb.mp4 2\na.mp4 3", "line 4: a.mp4 has label 3 here and 1 on line 1"),
        ("\n \n", "is empty"),
    ],
)
def test_wrong_video_list(write, text: str, says: str):
    _check_error(read_video_list, write(text), says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a 30 0\nb 0", "line 2: expected 'folder num_frames label'"),
        ("a.mp4 0", "config.data.source=videos"),
        ("my clip.mp4 0", "config.data.source=videos"),
        ("a 30 x", "label 'x'"),
        ("a 30 4", "outside 0..3"),
        ("a 3_0 1", "expected 'folder num_frames label'"),
        ("a ٣ 1", "expected 'folder num_frames label'"),
        ("a 30 1\na 30 2", "line 2: a has label 2 here and 1 on line 1"),
        ("a 0 1", "line 1: num_frames is 0"),
        ("", "is empty"),
    ],
)
def test_wrong_frame_list(write, text: str, says: str):
    _check_error(read_frame_list, write(text), says)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(write, end: str):
    entries = read_video_list(write(f"a 0{end}b 1{end}"), num_classes=2)
    assert [entry.path for entry in entries] == ["a", "b"]


def test_a_clip_may_be_listed_twice(write):
    entries = read_video_list(write("a.mp4 1\na.mp4 1"), num_classes=2)
    assert entries == [ClipEntry("a.mp4", 1, None)] * 2


@pytest.mark.parametrize("read", [read_video_list, read_frame_list])
def test_a_pipe_or_a_device_is_not_a_list(read, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    _check_error(read, tmp_path / "pipe", "not a regular file")
    _check_error(read, Path("/dev/zero"), "not a regular file")


@pytest.mark.parametrize("read", [read_video_list, read_frame_list])
def test_missing_list(read, tmp_path: Path):
    _check_error(read, tmp_path / "clips.list", "cannot read the list")


def _check_error(read, path: Path, says: str):
    with pytest.raises(UserError) as caught:
        read(path, num_classes=4)
    message = str(caught.value)
    assert says in message
    assert str(path) in message
    assert message.isprintable()
