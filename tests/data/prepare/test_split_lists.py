"""A folder of videos in class folders to a training and a validation list."""

from __future__ import annotations

import os

import pytest

from tsm_jax import prepare
from tsm_jax.data.lists import read_video_list
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


def members(output, part):
    classes = (output / "labels.txt").read_text().splitlines()
    entries = read_video_list(output / f"{part}.list", num_classes=len(classes))
    return {(classes[entry.label], os.path.basename(entry.path)) for entry in entries}


def test_every_class_gives_its_share_and_every_video_is_in_one_list(folder, tmp_path):
    names = [f"{name}/clip {i}.mp4" for name in ("wave", "a b") for i in range(10)]
    root = folder(*names)
    made = split_folder(str(root), str(tmp_path / "own"), val_share=0.2)
    train, val = members(tmp_path / "own", "train"), members(tmp_path / "own", "val")
    assert not train & val
    assert train | val == {tuple(name.split("/")) for name in names}
    assert {c: sum(name == c for name, _ in val) for c in ("wave", "a b")} == {"wave": 2, "a b": 2}
    assert made.classes == ["a b", "wave"]
    assert all(os.path.exists(e.path) for e in read_video_list(made.lists[0].path, num_classes=2))


def test_the_split_follows_the_seed_and_stays_when_videos_come(folder, tmp_path):
    root = folder(*(f"{name}/{i}.mp4" for name in "ab" for i in range(20)))

    def val(seed=0):
        split_folder(str(root), str(tmp_path / "own"), val_share=0.2, seed=seed)
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
    made = split_folder(str(root), str(tmp_path / "own"), val_share=0.2)
    assert made.recordings == 15
    recordings = {}
    for part in ("train", "val"):
        classes = made.classes
        entries = read_video_list(tmp_path / "own" / f"{part}.list", num_classes=3)
        recordings[part] = {recording_of(os.path.relpath(e.path, root)) for e in entries}
        assert {classes[entry.label] for entry in entries} == {"Archery", "Diving", "zumba"}
    assert not recordings["train"] & recordings["val"]
    assert len(recordings["val"]) == 3


def test_folders_train_and_val_are_the_split(folder, tmp_path):
    root = folder("train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4")
    made = split_folder(str(root), str(tmp_path / "own"), val_share=0.5)
    assert made.given
    assert made.only_training == ["b"]
    assert members(tmp_path / "own", "train") == {("a", "1.mp4"), ("b", "2.mp4")}
    assert members(tmp_path / "own", "val") == {("a", "3.mp4")}
    folder("val/c/4.mp4")
    with pytest.raises(UserError, match="val/c has no folder in train/"):
        split_folder(str(root), str(tmp_path / "own"), val_share=0.5)


def test_a_class_of_one_recording_only_trains(folder, tmp_path, capsys, monkeypatch):
    root = folder("a/1.mp4", "a/2.mp4", "b/1.mp4")
    arguments = ["lists", "folders", "--videos", str(root), "--output", str(tmp_path / "own")]
    prepare.main([*arguments, "--val_share", "0.2"])
    out = capsys.readouterr().out
    assert "only one recording, so not in validation: b" in out
    assert "train.list: 2 clips" in out
    assert f"--config.data.train_list={tmp_path}/own/train.list" in out
    monkeypatch.chdir(tmp_path)
    prepare.main([*arguments[:-1], "data/own", "--val_share", "0.2"])
    assert capsys.readouterr().out.endswith("train --config configs/own_videos.py\n")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.mp4"], "1.mp4 lies in no class"),
        (["a/1.mp4", "a/2.mp4"], "one class only, a"),
        (["a/1.mp4", "b/1.mp4"], "nothing to validate on"),
        (["a/readme.txt"], "has no video files"),
    ],
)
def test_a_folder_that_cannot_be_split(folder, tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        split_folder(str(folder(*names)), str(tmp_path / "own"), val_share=0.2)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folders", "--videos", "v", "--val_share", "1"], "--val_share is 1.0"),
        (["ucf101", "--videos", "v", "--val_share", "0.2"], "but folders --videos"),
        (["folders", "--videos", "v", "--labels", "l", "--val_share", "0.2"], "with --labels"),
        (["folders", "--videos", "v", "--seed", "1"], "--seed needs --val_share"),
        (["folders", "--videos", "v"], "is a folder: name a file in it, or add --val_share 0.2"),
    ],
)
def test_a_command_that_makes_no_sense(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        prepare.main(["lists", *words, "--output", str(tmp_path)])
