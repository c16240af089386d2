"""The predict command on an exported folder: lines, pictures, exit codes, lists."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tsm_jax import predict
from tsm_jax.deploy.inputs import find_videos
from tsm_jax.deploy.outputs import picture_path
from tsm_jax.deploy.picture import compose
from tsm_jax.errors import UserError
from tsm_jax.prediction import Prediction, best_classes


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


def test_json_on_the_standard_output_is_alone_there(exported, videos, capsys):
    assert run(exported, "--input", videos / "0.mp4", "--output", "-") == 0
    assert json.loads(capsys.readouterr().out)["video"] == str(videos / "0.mp4")


def test_pictures(exported, videos, tmp_path):
    run(exported, "--input", videos / "0.mp4", "--visualize", tmp_path / "a" / "one.png")
    with Image.open(tmp_path / "a" / "one.png") as image:
        assert image.size[0] > 1000
    run(exported, "--input", videos, "--visualize", tmp_path / "many")
    names = {path.name for path in (tmp_path / "many").iterdir()}
    assert names == {"0.png", "1.png", "3.png", "4.png", "5.png"}
    with pytest.raises(UserError, match="is one picture for 6 videos: give a folder"):
        run(exported, "--input", videos, "--visualize", tmp_path / "one.png")


def test_names_of_pictures_do_not_collide(tmp_path):
    choose = picture_path(str(tmp_path), ["a/x.mp4", "b/x.mp4", "c/y.avi"])
    assert choose is not None
    names = [choose(video).rpartition("/")[2] for video in ("a/x.mp4", "b/x.mp4", "c/y.avi")]
    assert names == ["x.png", "x_2.png", "y.png"]


@pytest.mark.parametrize("frames", [3, 8, 16])
def test_the_picture_shows_frames_scores_and_maps(frames):
    clip = np.full((frames, 32, 32, 3), 200, np.uint8)
    predictions = [Prediction(0, "a " * 200, 0.75), Prediction(1, "b", 0.25)]
    maps = np.zeros((frames, 2, 2), np.float32)
    maps[-1, 0, 0] = 3.0
    plain = np.asarray(compose("x.mp4", clip, predictions, np.zeros_like(maps)), np.int64)
    image = np.asarray(compose("x.mp4", clip, predictions, maps), np.int64)
    assert (image == 200).all(-1).any()  # the frames themselves
    changed = np.argwhere((image != plain).any(-1))
    # Of the maps only the last frame's changed (the right end of the last row) and its bar.
    assert changed[:, 1].min() > image.shape[1] * ((frames - 1) % 8) / 8 * 0.9
    assert len(changed) > 500


def test_inputs_are_files_folders_and_lists(videos, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.MP4", "a.avi", "notes.txt", "deep/c.webm"):
        (folder / name).touch()
    films = tmp_path / "list.txt"
    films.write_text("folder/a.avi 3\n\nfolder/b.MP4\nfolder/gone.mp4\n")
    monkeypatch.chdir(videos)
    found = find_videos([str(folder), "0.mp4", str(films), "gone.mp4"])
    assert found == [
        *(str(folder / name) for name in ("a.avi", "b.MP4", "deep/c.webm")),
        "0.mp4",
        *(str(tmp_path / "folder" / name) for name in ("a.avi", "b.MP4")),
        "folder/gone.mp4",
        "gone.mp4",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there are no videos in"):
        find_videos([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="cannot read the list"):
        find_videos([str(tmp_path / "gone.txt")])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--engine", "caffe"), "there is no engine 'caffe'"),
        (("--precision", "half"), "there is no precision 'half'"),
        (("--batch_size", "0"), "--batch_size is 0"),
        (("--step", "1"), "give --window SECONDS, too"),
        (("--window", "0"), "--window is 0.0: it must be a number of seconds above 0"),
        (("--window", "nan"), "--window is nan"),
        (("--output", "/proc/none/x"), "cannot write /proc/none/x"),
    ],
)
def test_a_mistake_is_one_line(exported, videos, arguments, message):
    with pytest.raises(UserError) as error:
        run(exported, "--input", videos / "0.mp4", *arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_best_classes():
    logits = np.log(np.array([0.2, 0.5, 0.2, 0.1], np.float32)) + 1000
    best = best_classes(logits, ["a", "b", "c", "d"], 3)
    assert [(p.index, p.label) for p in best] == [(1, "b"), (0, "a"), (2, "c")]
    assert [p.score for p in best] == pytest.approx([0.5, 0.2, 0.2], rel=1e-3)
    assert len(best_classes(logits, ["a", "b", "c", "d"], 9)) == 4
