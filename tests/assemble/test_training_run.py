"""The commands end to end on rendered videos: train, continue, evaluate, predict, export.

Only the tests know the backbone: whatever works here needs nothing but its name.
"""

from __future__ import annotations

import csv
import json
import os
import shutil

import jax
import numpy as np
import pytest
from small_recipe import RECIPE, overrides

import tsm_jax
from tsm_jax import cli, convert, evaluate, predict, train
from tsm_jax.assemble import train as training_run
from tsm_jax.assemble.evaluate import evaluate_weights
from tsm_jax.assemble.train import train_recipe
from tsm_jax.assemble.weights import load_model
from tsm_jax.config import flatten
from tsm_jax.errors import UserError
from tsm_jax.exporting.writer import export_model
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.mesh import make_mesh
from tsm_jax.weights.model_directory import write_model_directory


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(jax.devices()[:1])


def recipe(data, workdir, **changes):
    return cli.load_recipe(RECIPE, overrides(data, workdir, **changes))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, one_device):
    workdir = tmp_path_factory.mktemp("run") / "work"
    state = train_recipe(recipe(data, workdir), one_device)
    return workdir, jax.device_get(state)


def metrics(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def test_a_run_leaves_checkpoints_metrics_labels_and_events(trained, data):
    workdir, state = trained
    assert int(state.step) == 6
    assert [line["step"] for line in metrics(workdir, "train")] == [2, 3, 5, 6]
    assert [line["step"] for line in metrics(workdir, "val")] == [3, 6]
    assert all(line["count"] == 16 for line in metrics(workdir, "val"))
    assert (workdir / "labels.txt").read_text() == (data / "labels.txt").read_text()
    assert any("tfevents" in name for name in os.listdir(workdir / "tensorboard"))


def test_a_finished_run_does_nothing_more(trained, data, one_device):
    workdir, state = trained
    again = train_recipe(recipe(data, workdir), one_device)
    assert int(again.step) == int(state.step)
    assert len(metrics(workdir, "train")) == 4


def test_clips_in_both_lists_are_reported(trained, data, tmp_path, one_device, capsys):
    shutil.copytree(trained[0], tmp_path / "work")
    mixed = tmp_path / "val.list"
    lines = [(data / name).read_text().splitlines() for name in ("train.list", "val.list")]
    mixed.write_text("\n".join(lines[0][:3] + lines[1]))
    train_recipe(recipe(data, tmp_path / "work"), one_device)
    assert "clips are in both" not in capsys.readouterr().out
    train_recipe(recipe(data, tmp_path / "work", **{"data.val_list": mixed}), one_device)
    warning = "warning: 3 clips are in both the training and the validation list"
    assert warning in capsys.readouterr().out


def test_refuses_to_continue_a_run_of_another_recipe(trained, data, one_device):
    config = recipe(data, trained[0], **{"model.shift": "none"})
    with pytest.raises(UserError, match="model.shift 'past_first' -> 'none'"):
        train_recipe(config, one_device)


def test_the_stored_recipe_is_the_recipe(trained, data):
    checkpoints = Checkpoints(str(trained[0]), read_only=True)
    stored = checkpoints.recipe(6)
    checkpoints.close()
    given = recipe(data, trained[0])
    assert stored.data.frame_rate > 0 == given.data.frame_rate  # 0: measured from the videos
    given.data.frame_rate = stored.data.frame_rate
    assert dict(flatten(stored)) == dict(flatten(given))


def best(workdir):
    return max(metrics(workdir, "val"), key=lambda line: (line["top1"], -line["step"]))


@pytest.mark.parametrize("batch_size", [16, 24])
def test_evaluate_reproduces_the_best_accuracy(trained, data, batch_size):
    workdir, _ = trained
    evaluation = evaluate_weights(recipe(data, workdir, eval_batch_size=batch_size), None)
    result = evaluation.metrics
    assert evaluation.logits.shape == (16, 8)
    assert (evaluation.ranks == 0).mean() == result["top1"]
    assert (evaluation.logits.argmax(1) == evaluation.labels).mean() == result["top1"]
    for name in result.keys() - {"loss"}:
        assert result[name] == best(workdir)[name]
    assert result["loss"] == pytest.approx(best(workdir)["loss"], rel=1e-5)


def test_evaluate_takes_the_recipe_from_the_run(trained, capsys):
    workdir, _ = trained
    evaluate.main(["--weights", str(workdir)])
    assert f"top1 {best(workdir)['top1']:.5f}" in capsys.readouterr().out


def test_training_and_evaluation_are_also_functions(trained, data, one_device, monkeypatch):
    workdir, _ = trained
    monkeypatch.setattr(training_run, "make_mesh", lambda: one_device)
    config = recipe(data, workdir)
    assert tsm_jax.train(config) == str(workdir)  # done already
    assert tsm_jax.train.main is train.main
    best = max(line["top1"] for line in metrics(workdir, "val"))
    assert tsm_jax.evaluate(workdir).metrics["top1"] == best
    assert tsm_jax.evaluate(config=config, average="logits").metrics["top1"] == best
    config.epochs = 0
    with pytest.raises(UserError, match="config.epochs"):
        tsm_jax.train(config)
    with pytest.raises(UserError, match="no recipe named configs/nothing.py"):
        tsm_jax.train("configs/nothing.py")
    with pytest.raises(UserError, match="nothing to evaluate: give weights, a recipe, or both"):
        tsm_jax.evaluate()


def test_evaluate_shows_the_views_of_a_protocol(trained, data):
    config = recipe(data, trained[0], **{"data.protocol": "mit_twice_three_crop"})
    evaluation = evaluate_weights(config, None)
    assert evaluation.metrics["count"] == 16
    assert evaluation.metrics["loss"] != pytest.approx(best(trained[0])["loss"], rel=1e-6)
    assert "(mit_twice_three_crop: views 6, mean of logits)" in evaluation.summary()


def test_views_are_averaged_as_requested(trained, data):
    config = recipe(data, trained[0], **{"data.protocol": "mit_three_crop"})
    as_mit, logits, probabilities = (
        evaluate_weights(config, None, average=average)
        for average in (None, "logits", "probabilities")
    )
    assert as_mit.metrics == logits.metrics
    assert np.abs(logits.logits - probabilities.logits).max() > 1e-3
    assert probabilities.average == "probabilities"


def test_a_report_contains_what_evaluate_prints(trained, tmp_path, capsys):
    workdir, folder = str(trained[0]), tmp_path / "report"
    evaluate.main(["--weights", workdir, "--report", str(folder)])
    printed = capsys.readouterr().out
    reported = json.loads((folder / "metrics.json").read_text())
    for name in ("top1", "top5", "mean_recall", "largest_class_share", "loss"):
        assert f"{name} {reported[name]:.5f}" in printed
    assert {name: reported[name] for name in ("top1", "top5", "mean_recall")} == {
        name: best(trained[0])[name] for name in ("top1", "top5", "mean_recall")
    }
    with open(folder / "confusion.csv", newline="") as file:
        matrix = np.array([row[1:] for row in list(csv.reader(file))[1:]], int)
    assert matrix.sum(1).tolist() == [2] * 8
    assert (np.diag(matrix) / 2).mean() == reported["mean_recall"]
    wrong = reported["count"] - round(reported["top1"] * reported["count"])
    assert len(os.listdir(folder / "mistakes")) == min(wrong, 12)


def test_a_bad_report_folder_is_refused_before_the_evaluation(trained, data):
    with pytest.raises(UserError, match="files that do not belong to a report"):
        evaluate.main(["--weights", str(trained[0]), "--report", str(data)])


def test_an_unreadable_clip_stops_the_evaluation_and_leaves_no_report(
    trained, data, tmp_path, capsys
):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    video = copy / (copy / "val.list").read_text().split()[0]
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(UserError, match=video.name):
        evaluate.main(
            ["--config", RECIPE, *overrides(copy, trained[0]), "--report", str(tmp_path / "report")]
        )
    assert os.listdir(tmp_path) == ["data"]


def test_a_model_directory_predicts_the_same_as_the_run(trained, data, tmp_path):
    workdir, _ = trained
    directory = str(tmp_path / "model")
    write_model_directory(load_model(str(workdir)), directory)
    config = recipe(data, workdir)
    of_directory, of_run = (evaluate_weights(config, path) for path in (directory, str(workdir)))
    assert of_directory.metrics == of_run.metrics
    np.testing.assert_array_equal(of_directory.logits, of_run.logits)
    video = str(next((data / "videos" / "grow").iterdir()))
    from_run, from_directory = tsm_jax.load(str(workdir)), tsm_jax.load(directory)
    assert from_run.predict(video) == from_directory.predict(video)


def test_published_files_contain_no_folder_names(trained, data, tmp_path, tmp_path_factory):
    """In `recipe`, lists, workdir and videos are all given by absolute paths."""
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    workdir = str(trained[0])
    convert.main(["--input", workdir, "--output", str(tmp_path / "model")])
    export_model(load_model(workdir), str(tmp_path / "TSM"), formats=("stablehlo",))
    evaluate.main(["--weights", workdir, "--report", str(tmp_path / "report")])
    shutil.copy(trained[0] / "MODEL_CARD.md", tmp_path)
    given = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert len(given) > 15
    for path in given:
        assert str(tmp_path_factory.getbasetemp()).encode() not in path.read_bytes(), path
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["provenance"]["trained_in"] == "work"
    assert config["provenance"]["recipe"]["data"]["train_list"] == "train.list"
    clips = (tmp_path / "report" / "predictions.csv").read_text().splitlines()
    assert (data / "videos" / clips[1].split(",")[0]).is_file()


def test_weights_that_are_not_finite_are_refused(trained, monkeypatch):
    restore = Checkpoints.restore_model

    def poisoned(self, *arguments):
        params, statistics = restore(self, *arguments)
        return {**params, "head.fc.bias": params["head.fc.bias"] * np.nan}, statistics

    monkeypatch.setattr(Checkpoints, "restore_model", poisoned)
    with pytest.raises(
        UserError, match=r"checkpoints/\d+: head.fc.bias contains values that are not"
    ):
        load_model(str(trained[0]))


def test_a_recipe_with_an_impossible_network_is_refused(trained, monkeypatch):
    stored = Checkpoints.recipe

    def changed(self, step):
        config = stored(self, step)
        config.model.shift = "sideways"
        return config

    monkeypatch.setattr(Checkpoints, "recipe", changed)
    with pytest.raises(UserError, match=r"checkpoints/\d+: architecture.shift is 'sideways'"):
        load_model(str(trained[0]))


def test_an_exported_run_predicts_the_same_as_evaluate(trained, data, tmp_path, formats):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    workdir = str(trained[0])
    export_model(load_model(workdir), str(tmp_path / "TSM"), formats=formats)
    assert "TSM-Toy" in (tmp_path / "TSM" / "README.md").read_text()
    lines = [line.split() for line in (data / "val.list").read_text().splitlines()]
    predictor = tsm_jax.load(str(tmp_path / "TSM"), engine="jax")
    answers = predictor.predict_many([str(data / path) for path, _ in lines], top_k=5, batch_size=5)
    ranked = [[p.index for p in answer.predictions] for answer in answers]
    labels = [int(label) for _, label in lines]
    result = evaluate_weights(recipe(data, workdir), workdir).metrics
    assert result["count"] == len(ranked)
    for name, k in (("top1", 1), ("top5", 5)):
        hits = sum(label in classes[:k] for label, classes in zip(labels, ranked, strict=True))
        assert hits / len(labels) == pytest.approx(result[name])


def test_predict_names_classes_and_continues_after_a_broken_video(trained, data, tmp_path, capsys):
    video = str(next((data / "videos" / "grow").iterdir()))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    arguments = ["--model", str(trained[0]), "--input", str(broken), video, "--top_k", "3"]
    with pytest.raises(SystemExit) as exit_:
        predict.main(arguments)
    assert exit_.value.code == 1
    captured = capsys.readouterr()
    assert str(broken) in captured.err
    assert "1 of 2 videos could not be read" in captured.err
    lines = captured.out.splitlines()
    assert lines[0] == video
    assert len(lines) == 4
    labels = (data / "labels.txt").read_text().split()
    assert lines[1].split()[1] in labels


def test_forward_and_predict_agree(trained, data):
    recognizer = tsm_jax.load(str(trained[0]))
    clips = np.random.default_rng(0).normal(size=(3, 4, 32, 32, 3)).astype(np.float32)
    logits = recognizer.forward(clips)
    assert (logits.shape, logits.dtype) == ((3, 8), np.float32)
    with pytest.raises(ValueError, match=r"it must be \[N, 4, H, W, 3\]"):
        recognizer.forward(clips[:, :3])
    video = str(next((data / "videos" / "grow").iterdir()))
    predictions = recognizer.predict(video, top_k=8)
    assert sum(prediction.score for prediction in predictions) == pytest.approx(1)
    scores = [prediction.score for prediction in predictions]
    assert scores == sorted(scores, reverse=True)
    assert {p.label for p in predictions} == set((data / "labels.txt").read_text().split())


@pytest.fixture
def with_a_broken_video(data, tmp_path):
    """Copies the data with one training video truncated to half."""
    copy = tmp_path / "broken"
    shutil.copytree(data, copy)
    video = copy / (copy / "train.list").read_text().split()[0]
    video.write_bytes(video.read_bytes()[:200])
    return copy, video


def test_a_broken_video_stops_training_and_is_named(with_a_broken_video, tmp_path, one_device):
    data, video = with_a_broken_video
    with pytest.raises(UserError, match=r"on_error=skip") as error:
        train_recipe(recipe(data, tmp_path / "work"), one_device)
    assert video.name in str(error.value)


def test_a_broken_video_is_skipped_and_counted(with_a_broken_video, tmp_path, one_device, caplog):
    data, video = with_a_broken_video
    config = recipe(data, tmp_path / "work", **{"data.on_error": "skip"})
    train_recipe(config, one_device)
    # Each epoch contains all clips.
    assert [line["replaced_clips"] for line in metrics(tmp_path / "work", "train")][1::2] == [1, 2]
    assert f"{video.name}" in caplog.text


def test_train_command_prints_what_it_does(data, tmp_path, one_device, monkeypatch, capsys):
    monkeypatch.setattr(training_run, "make_mesh", lambda: one_device)
    workdir = tmp_path / "work"
    train.main(["--config", RECIPE, *overrides(data, workdir)])
    out = capsys.readouterr().out
    best = metrics(workdir, "val")[0]["top1"]
    assert f"Already save the best model (top1 acc){int(best * 10000) / 10000}\n" in out
    for part in ("on 1 x cpu", "random weights", "clips/s", "ETA", "saved in", "checkpoints/"):
        assert part in out
