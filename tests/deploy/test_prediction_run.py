"""The predict command on an exported folder: lines, pictures, exit codes, lists."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from tsm_jax import predict
from tsm_jax.data.prepare import entries
from tsm_jax.deploy.drawing import draw_clip
from tsm_jax.deploy.prediction import Prediction, average_views, best_classes
from tsm_jax.deploy.prediction_run import picture_paths
from tsm_jax.deploy.videos import find_videos
from tsm_jax.errors import UserError


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(exported, *arguments):
    """The exit code of the command."""
    try:
        predict.main(["--model", str(exported), *map(str, arguments)])
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_a_line_per_video_and_the_number_of_failures(exported, videos, tmp_path, capsys):
    missing = tmp_path / "missing.mp4"
    output = tmp_path / "out" / "results.jsonl"
    code = run(exported, "--input", videos, missing, "--output", output, "--top_k", "2")
    assert code == 2
    results = lines_of(output)
    assert [result["video"] for result in results] == [
        *(str(videos / name) for name in ("0.mp4", "1.mp4", "2_broken.mp4")),
        *(str(videos / name) for name in ("3.mp4", "4.mp4", "5.mp4")),
        str(missing),
    ]
    for result in results:
        if result["video"] in (str(videos / "2_broken.mp4"), str(missing)):
            assert set(result) == {"video", "error"}
            assert result["video"] in result["error"]
            assert "\n" not in result["error"]
        else:
            scores = [prediction["score"] for prediction in result["predictions"]]
            assert len(scores) == 2 and scores == sorted(scores, reverse=True)
            best = result["predictions"][0]
            assert best["label"] == f"class number {best['index']}"
    captured = capsys.readouterr()
    assert "2 of 7 videos could not be read" in captured.err
    assert "busy" in captured.err
    assert captured.out.splitlines()[0] == str(videos / "0.mp4")


def test_standard_output_contains_only_json(exported, videos, capsys):
    assert run(exported, "--input", videos / "0.mp4", "--output", "-") == 0
    assert json.loads(capsys.readouterr().out)["video"] == str(videos / "0.mp4")


def test_pictures(exported, videos, tmp_path):
    run(exported, "--input", videos / "0.mp4", "--visualize", tmp_path / "a" / "one.png")
    with Image.open(tmp_path / "a" / "one.png") as image:
        assert image.size[0] > 1000
    with pytest.raises(UserError, match="one.png already exists: choose another place, or --over"):
        run(exported, "--input", videos / "1.mp4", "--visualize", tmp_path / "a" / "one.png")
    run(exported, "--input", videos, "--visualize", tmp_path / "many")
    names = {path.name for path in (tmp_path / "many").iterdir()}
    assert names == {"0.png", "1.png", "3.png", "4.png", "5.png"}
    with pytest.raises(UserError, match="is one picture for 6 videos: use a folder"):
        run(exported, "--input", videos, "--visualize", tmp_path / "one.png")


def test_names_of_pictures_do_not_collide(tmp_path):
    long = "c/" + "n" * 252 + ".ts"
    paths = picture_paths(str(tmp_path), ["a/x.mp4", "b/x.mp4", "c/y.avi", long], overwrite=False)
    assert paths is not None
    names = [path.rpartition("/")[2] for path in paths]
    assert names == ["x.png", "x_2.png", "y.png", "n" * 200 + ".png"]


def pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"), np.int64)


@pytest.mark.parametrize("frames", [3, 8, 16])
def test_the_picture_shows_frames_scores_and_maps(frames):
    clip = np.full((frames, 32, 32, 3), 200, np.uint8)
    predictions = [Prediction(0, "a " * 200, 0.75), Prediction(1, "b", 0.25)]
    maps = np.zeros((frames, 2, 2), np.float32)
    maps[-1, 0, 0] = 3.0
    plain = pixels(draw_clip("x.mp4", clip, predictions, np.zeros_like(maps)))
    image = pixels(draw_clip("x.mp4", clip, predictions, maps))
    assert (image == 200).all(-1).any()  # the frames themselves
    changed = np.argwhere((image != plain).any(-1))
    # Only the map of the last frame (the right end of the last row) and its bar changed.
    assert changed[:, 1].min() > image.shape[1] * ((frames - 1) % 8) / 8 * 0.9
    assert len(changed) > 500


def test_inputs_are_files_folders_and_lists(videos, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.MP4", "a.avi", "notes.txt", "deep/c.webm"):
        (folder / name).touch()
    films = tmp_path / "list.txt"
    films.write_text("folder/a.avi 3\n\nfolder/b.MP4\nfolder/gone.mp4\nfolder gone.mp4\n")
    monkeypatch.chdir(videos)
    found = find_videos([str(folder), "0.mp4", str(films), "gone.mp4"])
    assert found == [
        *(str(folder / name) for name in ("a.avi", "b.MP4", "deep/c.webm")),
        "0.mp4",
        *(str(tmp_path / "folder" / name) for name in ("a.avi", "b.MP4")),
        "folder/gone.mp4",
        "folder gone.mp4",  # not the folder of that name
        "gone.mp4",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there are no videos in"):
        find_videos([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="cannot read the list"):
        find_videos([str(tmp_path / "gone.txt")])
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="cannot read the list .*: it is not a regular file"):
        find_videos([str(tmp_path / "pipe.txt")])
    films.write_bytes(b"a.mp4\n\x00\xff")
    with pytest.raises(UserError, match="cannot read the list .*: it is not a text file"):
        find_videos([str(films)])
    films.write_bytes(b"\xff.mp4\n")
    assert list(map(os.fsencode, find_videos([str(films)]))) == [b"\xff.mp4"]


def test_prediction_and_preparation_find_the_same_videos(tmp_path):
    names = ["a.ts", "b.OGV", "c.mp4", "d.m4v"]
    for name in (*names, "e.txt", "f.ts.part"):
        (tmp_path / name).touch()
    assert find_videos([str(tmp_path)]) == [str(tmp_path / name) for name in names]
    assert entries.find_videos(tmp_path) == names


def test_a_folder_that_cannot_be_searched_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot search the folder .*closed: Permission denied"):
        find_videos([str(tmp_path)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--engine", "caffe"), "there is no engine 'caffe'"),
        (("--precision", "half"), "there is no precision 'half'"),
        (("--batch_size", "0"), "--batch_size is 0"),
        (("--step", "1"), "add --window SECONDS"),
        (("--batch_size", "1000000"), "--batch_size is 1000000: it must be at least 1 and at most"),
        (("--threads", "100000"), "--threads is 100000: it must be at least 1 and at most 256"),
        (("--num_segments", "0"), "--num_segments is 0: it must be at least 1"),
        (("--window", "0"), "--window is 0.0: it must be from 0.001 to 1000000 seconds"),
        (("--window", "1e-9"), "--window is 1e-09: it must be from 0.001"),
        (("--window", "nan"), "--window is nan"),
        (("--output", "/proc/none/x"), "cannot write /proc/none/x"),
    ],
)
def test_a_mistake_is_one_line(exported, videos, arguments, message):
    with pytest.raises(UserError) as error:
        run(exported, "--input", videos / "0.mp4", *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_only_results_in_a_file_promise_to_be_resumed(exported, videos, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_run", stop)
    for output in ((), ("--output", "-")):
        assert run(exported, "--input", videos / "0.mp4", *output) == 130
        assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(KeyboardInterrupt):
        run(exported, "--input", videos / "0.mp4", "--output", "results.jsonl")


def test_best_classes():
    logits = np.log(np.array([0.2, 0.5, 0.2, 0.1], np.float32)) + 1000
    best = best_classes(logits, ["a", "b", "c", "d"], 3)
    assert [(p.index, p.label) for p in best] == [(1, "b"), (0, "a"), (2, "c")]
    assert [p.score for p in best] == pytest.approx([0.5, 0.2, 0.2], rel=1e-3)
    assert len(best_classes(logits, ["a", "b", "c", "d"], 9)) == 4


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("average_probabilities", [False, True])
def test_scores_that_are_not_finite_are_an_error(wrong, average_probabilities):
    views = np.zeros((3, 4), np.float32)
    views[1, 2] = wrong
    logits = average_views(views, average_probabilities)
    with pytest.raises(UserError, match="inference/TSM produces scores that are NaN or infinite"):
        best_classes(logits, ["a", "b", "c", "d"], 3, "inference/TSM")


def test_as_many_labels_as_scores():
    with pytest.raises(UserError, match="the model has scores for 3 classes but 2 labels"):
        best_classes(np.zeros(3, np.float32), ["a", "b"], 1)


@pytest.mark.parametrize("scale", [1, 100])
def test_average_of_views(scale):
    """Also where every probability but one rounds to zero."""
    views = scale * np.array([[1, 2, 3], [3, 0, 0], [0, 1, -4]], np.float32)
    exact = views.astype(np.float64)
    scores = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    found = average_views(views, True)
    np.testing.assert_allclose(found, np.log(scores.mean(0)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(average_views(views, False), exact.mean(0), rtol=1e-5)
