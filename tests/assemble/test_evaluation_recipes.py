"""Recipes for videos that have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsm_jax.assemble import evaluation_recipes as evaluation_data
from tsm_jax.assemble.data import build_source
from tsm_jax.config import validate
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.errors import UserError
from tsm_jax.weights.model_directory import Architecture, Model

NAMES = ["ApplyEyeMakeup", "BenchPress", "clean and jerk"]


@pytest.fixture
def model():
    return Model(Architecture("resnet18", 3, 4, width=8), Preprocessing(32, 36), NAMES, {})


def touch(root: Path, *paths: str):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return str(root)


def clips(config):
    source = build_source(config.data, "val", config.model.num_classes)
    return [(source.name(i), source.label(i)) for i in range(len(source))]


def test_folders_get_the_labels_of_the_model(model, tmp_path):
    videos = touch(tmp_path / "v", "Clean_and_Jerk/a.mp4", "bench press/b.mp4")
    config = evaluation_data.class_folders(model, videos, str(tmp_path / "out"))
    validate(config)
    assert clips(config) == [
        (f"{videos}/Clean_and_Jerk/a.mp4", 2),
        (f"{videos}/bench press/b.mp4", 1),
    ]
    assert (config.model.num_classes, config.model.num_segments) == (3, 4)


def test_a_folder_that_is_not_a_class_is_named(model, tmp_path):
    videos = touch(tmp_path / "v", "BenchPress/a.mp4", "Surfing/b.mp4")
    with pytest.raises(UserError, match="Surfing is not one of the classes"):
        evaluation_data.class_folders(model, videos, str(tmp_path / "out"))


def test_other_weights_can_be_evaluated_in_the_same_folder(model, tmp_path):
    videos = touch(tmp_path / "v", "BenchPress/a.mp4")
    evaluation_data.class_folders(model, videos, str(tmp_path / "out"))
    other = Model(Architecture("resnet18", 2, 4), Preprocessing(), ["Surfing", "BenchPress"], {})
    config = evaluation_data.class_folders(other, videos, str(tmp_path / "out"))
    assert clips(config) == [(f"{videos}/BenchPress/a.mp4", 1)]


@pytest.fixture
def ucf101(tmp_path):
    splits = tmp_path / "ucf" / "ucfTrainTestlist"
    splits.mkdir(parents=True)
    (splits / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 BenchPress\n3 CleanAndJerk\n")
    (splits / "trainlist01.txt").write_text("BenchPress/v_BenchPress_g08_c01.avi 2\n")
    (splits / "testlist01.txt").write_text("CleanAndJerk/v_CleanAndJerk_g01_c01.avi\n")
    for name in ("BenchPress/v_BenchPress_g08_c01", "CleanAndJerk/v_CleanAndJerk_g01_c01"):
        touch(tmp_path / "ucf" / "videos", f"{name}.avi")
    return str(tmp_path / "ucf")


def test_ucf101_uses_its_test_list(model, ucf101, tmp_path):
    config = evaluation_data.ucf101(model, ucf101, str(tmp_path / "out"))
    validate(config)
    assert clips(config) == [(f"{ucf101}/videos/CleanAndJerk/v_CleanAndJerk_g01_c01.avi", 2)]


def test_ucf101_needs_a_model_of_its_classes(ucf101, tmp_path):
    other = Model(Architecture("resnet18", 3, 4), Preprocessing(), ["a", "b", "c"], {})
    with pytest.raises(UserError, match=r"the model has 3 classes \(a, ...\)"):
        evaluation_data.ucf101(other, ucf101, str(tmp_path / "out"))


@pytest.mark.parametrize(("most", "kept"), [(0, 40), (40, 40), (90, 40), (13, 13), (1, 1)])
def test_a_limit_keeps_the_order_and_always_the_same_clips(model, tmp_path, most, kept):
    videos = touch(tmp_path / "v", *(f"BenchPress/{i:02}.mp4" for i in range(40)))
    every = evaluation_data.class_folders(model, videos, str(tmp_path / "out"))
    of_all = clips(every)
    chosen = clips(evaluation_data.at_most(every, most))
    assert len(set(chosen)) == len(chosen) == kept
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(of_all)
    again = evaluation_data.class_folders(model, videos, str(tmp_path / "out"))
    assert clips(evaluation_data.at_most(again, most)) == chosen
