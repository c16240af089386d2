"""Lists made from the files of each data set, and the results of checking their clips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tsm_jax import prepare
from tsm_jax.data.lists import ClipEntry, read_frame_list, read_video_list
from tsm_jax.data.prepare.check import check_entries
from tsm_jax.data.prepare.entries import short_names
from tsm_jax.errors import UserError


def run(*arguments):
    prepare.main([str(word) for word in arguments])


@pytest.fixture
def ucf101(tmp_path) -> Path:
    """A UCF-101 of two classes; the last clip of the second has neither video nor frames."""
    root = tmp_path / "ucf101"
    splits = root / "ucfTrainTestlist"
    splits.mkdir(parents=True)
    (splits / "classInd.txt").write_text("1 Archery\r\n2 HandstandPushups\r\n")
    (splits / "trainlist01.txt").write_text(
        "Archery/v_Archery_g08_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g09_c02.avi 2\n"
    )
    (splits / "testlist01.txt").write_text(
        "Archery/v_Archery_g01_c01.avi\nHandstandPushups/v_HandStandPushups_g01_c01.avi\n"
    )
    for name in (
        "Archery/v_Archery_g08_c01",
        "HandstandPushups/v_HandStandPushups_g09_c02",
        "Archery/v_Archery_g01_c01",
    ):
        video, folder = root / "videos" / f"{name}.avi", root / "rawframes" / name
        video.parent.mkdir(parents=True, exist_ok=True)
        video.touch()
        folder.mkdir(parents=True)
        for i in (1, 2, 3):
            (folder / f"img_{i:05}.jpg").touch()
        (folder / "flow_x_00001.jpg").touch()
    return root


def test_ucf101_lists_are_those_of_paddle_video(ucf101, capsys):
    run(
        *("lists", "ucf101", "--splits", ucf101 / "ucfTrainTestlist", "--output", ucf101),
        *("--videos", ucf101 / "videos", "--frames", ucf101 / "rawframes"),
    )
    videos, frames = f"{ucf101}/videos", f"{ucf101}/rawframes"
    assert (ucf101 / "ucf101_train_split_1_videos.txt").read_text() == (
        f"{videos}/Archery/v_Archery_g08_c01 0\n"
        f"{videos}/HandstandPushups/v_HandStandPushups_g09_c02 1\n"
    )
    assert (ucf101 / "ucf101_val_split_1_rawframes.txt").read_text() == (
        f"{frames}/Archery/v_Archery_g01_c01 3 0\n"
    )
    assert (ucf101 / "labels.txt").read_text() == "Archery\nHandstandPushups\n"
    out = capsys.readouterr().out
    assert "1 missing, such as HandstandPushups/v_HandStandPushups_g01_c01" in out
    entries = read_video_list(
        ucf101 / "ucf101_train_split_1_videos.txt", suffix=".avi", num_classes=2
    )
    assert all(os.path.exists(entry.path) for entry in entries)


def test_a_wrong_split_folder_is_named(ucf101, tmp_path):
    with pytest.raises(UserError, match="one file classInd.txt .* found none"):
        run("lists", "ucf101", "--splits", tmp_path, "--videos", ucf101, "--output", tmp_path)
    with pytest.raises(UserError, match="has none of the 2 clips"):
        run(
            *("lists", "ucf101", "--splits", ucf101 / "ucfTrainTestlist"),
            *("--videos", tmp_path, "--output", tmp_path),
        )


def test_folders_of_classes(videos, tmp_path):
    path = tmp_path / "lists" / "train.list"
    run("lists", "folders", "--videos", videos, "--output", path)
    entries = read_video_list(path, prefix=str(videos), num_classes=2)
    assert len(entries) == 7
    assert entries[-1] == ClipEntry(str(videos / "b b" / "clip2.mp4"), 1, None)
    assert (path.parent / "labels.txt").read_text() == "a\nb b\n"
    (videos.parent / "loose").mkdir()
    (videos.parent / "loose" / "x.mp4").touch()
    with pytest.raises(UserError, match="is not in a class folder"):
        run("lists", "folders", "--videos", videos.parent / "loose", "--output", path)


def test_a_validation_list_with_other_classes_is_refused(videos, tmp_path):
    run("lists", "folders", "--videos", videos, "--output", tmp_path / "train.list")
    (tmp_path / "val" / "b b").mkdir(parents=True)
    (tmp_path / "val" / "b b" / "x.mp4").touch()
    arguments = ["lists", "folders", "--videos", tmp_path / "val"]
    with pytest.raises(UserError, match="pass it as --labels"):
        run(*arguments, "--output", tmp_path / "val.list")
    run(*arguments, "--output", tmp_path / "val.list", "--labels", tmp_path / "labels.txt")
    assert (tmp_path / "val.list").read_text() == "b b/x.mp4 1\n"  # not 0


def test_classes_in_any_script_keep_their_own_labels(tmp_path):
    names = ["a b", "a-b", "打篮球", "走る", "跑步"]
    for name in names:
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "videos" / name / "1.mp4").touch()
    run("lists", "folders", "--videos", tmp_path / "videos", "--output", tmp_path / "all.list")
    expected = [f"{name}/1.mp4 {label}" for label, name in enumerate(names)]
    assert (tmp_path / "all.list").read_text().splitlines() == expected
    for path in ("twice.txt", "spelled.txt"):
        (tmp_path / path).write_text("a.b\na:b\n走る\n打篮球\n跑步\n" * (1 + (path[0] == "t")))
        with pytest.raises(UserError, match="repeats a name|is not one of the classes"):
            run(
                *("lists", "folders", "--videos", tmp_path / "videos"),
                *("--labels", tmp_path / path, "--output", tmp_path / "x" / "all.list"),
            )


@pytest.mark.parametrize("number", ["inf", "nan", "x", "1e400"])
def test_annotations_with_wrong_numbers(tmp_path, number):
    (tmp_path / "v" / "a").mkdir(parents=True)
    (tmp_path / "v" / "a" / "x.mp4").touch()
    csv = tmp_path / "val.csv"
    csv.write_text(f"label,youtube_id,time_start,time_end,split\nzumba,x,{number},10,val\n")
    with pytest.raises(UserError, match="cannot read the annotations"):
        run(
            *("lists", "kinetics400", "--videos", tmp_path / "v", "--annotations", csv),
            *("--output", tmp_path / "val.list"),
        )


KINETICS = ("abseiling", "massaging person's head", "zumba")


def test_kinetics_folders_have_the_published_labels(tmp_path):
    for name in ("abseiling", "massaging_person_s_head", "zumba"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "videos" / name / "abc_000001_000011.mp4").touch()
    path = tmp_path / "train.list"
    run("lists", "kinetics400", "--videos", tmp_path / "videos", "--output", path)
    labels = (tmp_path / "labels.txt").read_text().splitlines()
    numbers = [int(line.split()[-1]) for line in path.read_text().splitlines()]
    assert [labels[number] for number in numbers] == list(KINETICS)
    (tmp_path / "videos" / "nonsense").mkdir()
    (tmp_path / "videos" / "nonsense" / "a.mp4").touch()
    with pytest.raises(UserError, match="nonsense is not one of the classes"):
        run("lists", "kinetics400", "--videos", tmp_path / "videos", "--output", path)


@pytest.mark.parametrize("kind", ["videos", "frames"])
def test_kinetics_annotations_find_clips_anywhere(tmp_path, kind, capsys):
    root = tmp_path / kind / "part_1"
    names = ["-a_b_000044_000054.mp4", "x-Y_000000_000010.mp4"]
    for name in names:
        if kind == "videos":
            root.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        else:
            (root / name).mkdir(parents=True)
            (root / name / "img_00001.jpg").touch()
    csv = tmp_path / "val.csv"
    csv.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        'zumba,-a_b,44,54,val\n"massaging person\'s head",x-Y,0.0,10.0,val\nzumba,gone,1,11,val\n'
    )
    path = tmp_path / "val.list"
    arguments = ["--annotations", csv, "--output", path]
    run("lists", "kinetics400", f"--{kind}", tmp_path / kind, *arguments)
    labels = (tmp_path / "labels.txt").read_text().splitlines()
    count = "1 " if kind == "frames" else ""
    assert path.read_text().splitlines() == [
        f"part_1/{names[0]} {count}{labels.index('zumba')}",
        f"part_1/{names[1]} {count}{labels.index(KINETICS[1])}",
    ]
    assert "1 missing, such as gone_000001_000011" in capsys.readouterr().out
    csv.write_text("id,label\nx,y\n")
    with pytest.raises(UserError, match="has no column 'time_start'"):
        run("lists", "kinetics400", f"--{kind}", tmp_path / kind, *arguments)


def test_lists_of_paddle_video_are_read_as_they_are(tmp_path):
    path = tmp_path / "train_frames.list"
    path.write_text("abseiling/_4YTwq0-73Y_000044_000054.mp4 300 0\n/data/x/clip.mp4 250 1\n")
    entries = read_frame_list(path, prefix="/data/k400", num_classes=2)
    assert entries[0].path == "/data/k400/abseiling/_4YTwq0-73Y_000044_000054.mp4"
    assert short_names(entries, "/data/k400") == [
        "abseiling/_4YTwq0-73Y_000044_000054.mp4",
        "x/clip.mp4",
    ]
    clash = [ClipEntry("/a/x/1.mp4", 0, None), ClipEntry("/b/x/1.mp4", 0, None)]
    with pytest.raises(UserError, match="would both be called x/1.mp4"):
        short_names(clash, "")


@pytest.fixture
def mixed(videos, tmp_path, make_video, numbered_frames) -> Path:
    """A list of a good, a short, a broken, a missing and another good video."""
    make_video(tmp_path / "short.mp4", numbered_frames[:3])
    path = tmp_path / "mixed.list"
    path.write_text(
        f"a/clip0.mp4 0\n{tmp_path}/short.mp4 0\na/clip9.mp4 1\n\n"
        "nowhere.mp4 0\n  b b/clip1.mp4 1\n"
    )
    return path


def test_check_reports_broken_clips_and_writes_the_rest(videos, mixed, capsys):
    clean = mixed.with_name("clean.list")
    arguments = ["check", "--source", "videos", "--list", mixed, "--prefix", videos]
    run(*arguments, "--write_clean", clean, "--processes", 1)
    out = capsys.readouterr().out
    assert "2 ok, 1 short, 1 broken, 1 missing" in out
    assert clean.read_text() == f"a/clip0.mp4 0\n{mixed.parent}/short.mp4 0\nb b/clip1.mp4 1\n"
    report = mixed.with_name("mixed.list.check.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in report] == ["short", "broken", "missing"]
    assert "3 frames, fewer than 8 segments" in report[0]
    with pytest.raises(UserError, match="2 of 5 clips cannot be read"):
        run(*arguments, "--processes", 1)


def test_check_of_frames_misses_no_file(tmp_path, videos):
    output, path = tmp_path / "frames", tmp_path / "frames.list"
    run("lists", "folders", "--videos", videos, "--output", tmp_path / "all.list")
    run(
        *("frames", "--list", tmp_path / "all.list", "--prefix", videos, "--output", output),
        *("--write_list", path, "--processes", 1),
    )
    (output / "a" / "clip0" / "img_00023.jpg").unlink()  # the last frame
    (output / "a" / "clip1" / "img_00001.jpg").write_bytes(b"")
    entries = read_frame_list(path, prefix=str(output), num_classes=2)
    verdicts = check_entries(entries, "frames", processes=1)
    assert [v.kind for v in verdicts] == ["broken", "broken", "ok", "ok", "ok", "ok"]
    assert "img_00023.jpg is missing" in verdicts[0].detail


@pytest.mark.slow
def test_every_odd_video_gets_a_verdict(real_videos, tmp_path):
    folder = real_videos / "odd_videos"
    if not folder.is_dir():
        pytest.skip(f"{folder} cannot be in the repository")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [ClipEntry(str(path), 0, None) for path in paths]
    verdicts = check_entries(entries, "videos", processes=2, seconds=20)
    assert len(verdicts) == len(paths)
    assert {v.kind for v in verdicts} == {"ok", "short", "broken"}
    assert sum(v.is_usable for v in verdicts) > 60
    assert all(v.detail.count("\n") == 0 for v in verdicts)


@pytest.mark.parametrize("command", ["download", "lists", "frames", "check", "pack"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as error:
        run(command, "--help")
    assert error.value.code == 0
    assert f"python -m tsm_jax.prepare {command} " in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["list"], "invalid choice: 'list'"),
        (["lists", "folders", "--output", "x"], "give --videos, --frames, or both"),
        (
            ["lists", "folders", "--videos", "/nowhere", "--output", "x"],
            "the folder /nowhere does not exist",
        ),
        (["frames", "--output", "x"], "either --videos or --list"),
        (["check", "--source", "videos", "--list", "/nowhere"], "/nowhere"),
        (
            ["pack", "--source", "videos", "--list", "x", "--output", "y", "--clips_per_shard", 0],
            "--clips_per_shard is 0: it must be at least 1",
        ),
        (["check", "--source", "videos", "--list", "x", "--num_segments", 0], "must be at least 1"),
        (
            ["check", "--source", "videos", "--list", "x", "--seconds", "nan"],
            "must be at least 0.1",
        ),
        (["frames", "--list", "x", "--output", "y", "--quality", 101], "at most 100"),
        (["frames", "--list", "x", "--output", "y", "--processes", -1], "must be at least 0"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(UserError) as error:
        run(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_preparation_needs_no_jax(videos):
    import subprocess
    import sys

    code = (
        "import sys, tsm_jax.prepare, tsm_jax.data.packed, tsm_jax.data.prepare.pack,"
        " tsm_jax.data.prepare.extract, tsm_jax.data.prepare.check, tensorflow_datasets;"
        " print(*(name in sys.modules for name in ('jax', 'tensorflow')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False False\n", result.stderr
