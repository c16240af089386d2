"""Turns a folder of videos in class folders into a training and a validation list."""

from __future__ import annotations

import os
import shutil

import pytest

from tsm_jax import prepare
from tsm_jax.data.lists import read_video_list
from tsm_jax.data.prepare.entries import survey
from tsm_jax.data.prepare.split_lists import recording_of, split_folder
from tsm_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Creates empty videos by name."""

    def create(*names):
        for name in names:
            path = tmp_path / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "mine"

    return create


def split(root, output, **options):
    """Splits `<class>/<video>` into lists, without a test list."""
    return split_folder(str(root), str(output), survey(root), {}, val_share=0.2, **options)


def members(output, part):
    if not (output / f"{part}.list").exists():
        return set()
    classes = (output / "labels.txt").read_text().splitlines()
    entries = read_video_list(output / f"{part}.list", num_classes=len(classes))
    return {(classes[entry.label], os.path.basename(entry.path)) for entry in entries}


def test_every_class_gives_its_share_and_every_video_is_in_one_list(folder, tmp_path):
    names = [f"{name}/clip {i}.mp4" for name in ("wave", "a b") for i in range(10)]
    root = folder(*names)
    counts, _ = split(root, tmp_path / "own")
    train, val = members(tmp_path / "own", "train"), members(tmp_path / "own", "val")
    assert not train & val
    assert train | val == {tuple(name.split("/")) for name in names}
    assert {c: sum(name == c for name, _ in val) for c in ("wave", "a b")} == {"wave": 2, "a b": 2}
    assert counts == {"train": {"wave": 8, "a b": 8}, "val": {"wave": 2, "a b": 2}}
    entries = read_video_list(tmp_path / "own" / "train.list", num_classes=2)
    assert all(os.path.exists(entry.path) for entry in entries)


def test_the_split_follows_the_seed_and_stays_when_videos_come(folder, tmp_path):
    root = folder(*(f"{name}/{i}.mp4" for name in "ab" for i in range(20)))

    def val(seed=0):
        split(root, tmp_path / "own", seed=seed)
        return members(tmp_path / "own", "val")

    before = val()
    assert val() == before
    assert val(seed=1) != before
    folder("a/new.mp4")
    assert len(val() & before) >= len(before) - 1


def test_clips_of_one_recording_stay_together(folder, tmp_path):
    root = folder(
        *(f"Archery/v_Archery_g{g:02}_c{c:02}.avi" for g in range(1, 6) for c in range(1, 5)),
        *(f"Diving/person{p}/{c}.mp4" for p in range(5) for c in range(3)),
        *(f"zumba/a-b_{i}_{start:06}_{start + 10:06}.mp4" for i in range(5) for start in (0, 20)),
    )
    counts, number = split(root, tmp_path / "own")
    assert number == 15
    recordings, classes = {}, sorted(counts["train"])
    for part in ("train", "val"):
        entries = read_video_list(tmp_path / "own" / f"{part}.list", num_classes=3)
        recordings[part] = {recording_of(os.path.relpath(e.path, root)) for e in entries}
        assert {classes[entry.label] for entry in entries} == {"Archery", "Diving", "zumba"}
    assert not recordings["train"] & recordings["val"]
    assert len(recordings["val"]) == 3


def lists(root, output, *more):
    prepare.main(["lists", "folders", "--videos", str(root), "--output", str(output), *more])


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val"),
        ("Train", "Valid"),
        ("training", "validation"),
        ("train", "test"),
        ("TRAIN", "val", "testing"),
    ],
)
@pytest.mark.parametrize("share", [(), ("--val_share", "0.5")])
def test_folders_of_splits_are_the_splits(folder, tmp_path, capsys, names, share):
    root = folder(
        *(f"{names[0]}/a/{i}.mp4" for i in range(4)),
        *(f"{names[0]}/b/{i}.mp4" for i in range(2)),
        *(f"{name}/a/{name}.mp4" for name in names[1:]),
    )
    lists(root, tmp_path / "own", *share)
    train = {("a", f"{i}.mp4") for i in range(4)} | {("b", f"{i}.mp4") for i in range(2)}
    written = {part: members(tmp_path / "own", part) for part in ("train", "val", "test")}
    for name in names[1:]:
        assert written["test" if "test" in name else "val"] == {("a", f"{name}.mp4")}
    drawn = written["val"] if share and len(names) == 2 and "test" in names[1] else set()
    assert written["train"] == train - drawn and drawn <= train
    assert len(drawn) in (0, 3)  # half of each class
    out = capsys.readouterr().out
    assert f"split by its folders {names[0]} (train)" in out
    if not drawn:
        assert "train.list: 6 clips of 2 classes, from 2 (b) to 4 (a)" in out
    assert ("there is no validation set" in out) == (not written["val"])


AMBIGUOUS = {
    "a stranger": ["train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4", "archery/1.mp4"],
    "videos in a split": ["train/1.mp4", "train/2.mp4", "test/1.mp4"],
    "a vehicle": ["train/1.mp4", "bus/1.mp4", "tram/2.mp4"],
    "no training": ["val/a/1.mp4", "test/a/1.mp4"],
    "only training": ["train/a/1.mp4", "train/b/1.mp4"],
    "twice": ["train/a/1.mp4", "training/b/1.mp4", "val/a/1.mp4"],
    "loose": ["train/a/1.mp4", "val/a/1.mp4", "1.mp4"],
}


@pytest.mark.parametrize("share", [(), ("--val_share", "0.5")])
@pytest.mark.parametrize("names", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_folders_are_refused(folder, tmp_path, names, share):
    with pytest.raises(UserError, match="--layout splits to .* --layout classes to .*train|val"):
        lists(folder(*names), tmp_path / "own", *share)
    assert not (tmp_path / "own").exists()


def test_the_layout_decides(folder, tmp_path, capsys):
    root = folder(*AMBIGUOUS["a stranger"])
    lists(root, tmp_path / "classes" / "all.list", "--layout", "classes")
    labels = tmp_path / "classes" / "labels.txt"
    assert labels.read_text() == "archery\ntrain\nval\n"
    lists(root, tmp_path / "splits", "--layout", "splits")
    assert (tmp_path / "splits" / "labels.txt").read_text() == "a\nb\n"
    out = capsys.readouterr().out
    assert "1 folders beside the splits, left out: archery" in out
    assert "1 classes, not in validation: b" in out
    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match="cannot be read as splits, because there is no folder v"):
        lists(root, tmp_path / "x", "--layout", "splits")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train/a/1.mp4", "train/b/1.mp4", "val/c/1.mp4"], "val/c has no folder with videos in"),
        (["train/a/1.mp4", "train/b/1.mp4", "test/c/1.mp4"], "test/c has no folder with videos"),
        (["train/a/1.mp4", "train/b/1.mp4", "val/a/x.txt"], "val contains no videos"),
        (["train/a/1.mp4", "val/a/1.mp4"], "only one class, a"),
        (["train/ a/1.mp4", "train/b/1.mp4", "val/b/1.mp4"], "surrounding blanks"),
        (
            ["train/a\u2028c/1.mp4", "train/b/1.mp4", "val/b/1.mp4"],
            "must be one line of UTF-8 text",
        ),
        (["train/a\udcff/1.mp4", "train/b/1.mp4", "val/b/1.mp4"], "UTF-8"),
        (["train/a/1\n2.mp4", "train/b/1.mp4", "val/b/1.mp4"], "line breaks"),
    ],
)
def test_splits_that_are_wrong(folder, tmp_path, names, says):
    with pytest.raises(UserError, match=says) as caught:
        lists(folder(*names), tmp_path / "own")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "own").exists()


def test_omitted_files_are_named(folder, tmp_path, capsys):
    root = folder("a/1.mp4", "a/.2.mp4", "b/deep/er/1.mp4", "b/n\x1bote.txt", "empty/x.txt")
    (root / "a" / "circle").symlink_to(root)
    (root / "a" / "nowhere.mp4").symlink_to(root / "gone.mp4")
    os.mkfifo(root / "a" / "pipe.mp4")
    lists(root, tmp_path / "all.list")
    assert (tmp_path / "all.list").read_text() == "a/1.mp4 0\nb/deep/er/1.mp4 1\n"
    out = capsys.readouterr().out
    assert "2 clips of 2 classes, 1 each" in out
    assert "1 folders without videos, left out: empty" in out
    assert "6 other files" in out and "\x1b" not in out and "a/circle" in out


def test_lists_of_other_videos_are_not_left_beside(folder, tmp_path):
    lists(folder("train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4"), tmp_path / "own")
    root = folder("train/a/1.mp4", "train/b/1.mp4", "test/a/2.mp4")
    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match=r"val.list was made from other videos"):
        lists(root, tmp_path / "own")


def test_one_list_needs_a_file(folder, tmp_path):
    with pytest.raises(UserError, match="is a folder: name a file in it, or add --val_share 0.2"):
        lists(folder("a/1.mp4", "b/1.mp4"), tmp_path)


def test_several_lists_need_a_folder(folder, tmp_path):
    root = folder("train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4")
    with pytest.raises(UserError, match="several lists are written: give a folder"):
        lists(root, tmp_path / "train.list")


def test_a_class_of_one_recording_only_trains(folder, tmp_path, capsys, monkeypatch):
    root = folder("a/1.mp4", "a/2.mp4", "b/1.mp4")
    arguments = ["lists", "folders", "--videos", str(root), "--output", str(tmp_path / "own")]
    prepare.main([*arguments, "--val_share", "0.2"])
    out = capsys.readouterr().out
    assert "1 classes, only one recording, so not in validation: b" in out
    assert "train.list: 2 clips of 2 classes, 1 each" in out
    assert f"--config.data.train_list={tmp_path}/own/train.list" in out
    monkeypatch.chdir(tmp_path)
    prepare.main([*arguments[:-1], "data/own", "--val_share", "0.2"])
    assert capsys.readouterr().out.endswith("train own_videos_mobilenet\n")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.mp4"], "1.mp4 is not in a class folder"),
        (["a/1.mp4", "a/2.mp4"], "only one class, a"),
        (["a/1.mp4", "b/1.mp4"], "nothing for validation"),
        (["a/readme.txt"], "contains no video files"),
    ],
)
def test_a_folder_that_cannot_be_split(folder, tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        split(folder(*names), tmp_path / "own")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folders", "--videos", "v", "--val_share", "1"], "--val_share is 1.0"),
        (
            ["ucf101", "--videos", "v", "--val_share", "0.2"],
            "only allowed for folders with --videos",
        ),
        (
            ["folders", "--videos", "v", "--labels", "l", "--val_share", "0.2"],
            "cannot be used with --labels",
        ),
        (["folders", "--videos", "v", "--seed", "1"], "--seed needs --val_share"),
        (
            ["kinetics400", "--videos", "v", "--layout", "splits"],
            "--layout is only allowed for folders",
        ),
    ],
)
def test_contradictory_options_are_refused(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        prepare.main(["lists", *words, "--output", str(tmp_path)])
