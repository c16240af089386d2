"""`stream`: lines, JSON and an annotated video of an input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tsm_jax import stream as command
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.data.decode import every_frame
from tsm_jax.data.moving_shapes import draw_clip
from tsm_jax.deploy import live_input, stream_run
from tsm_jax.deploy.live_input import Frame, Gap
from tsm_jax.deploy.stream_run import follow
from tsm_jax.errors import UserError


@pytest.fixture(scope="module")
def recognizer(make_model):
    return Recognizer(make_model(shift="past_only"))


@pytest.fixture
def video(film, tmp_path):
    return str(film(tmp_path / "a.mp4", draw_clip(2, np.random.default_rng(0))[:24]))


def test_a_video_in_lines_of_json_and_annotated(recognizer, video, tmp_path, capsys):
    output, annotated = str(tmp_path / "a.jsonl"), str(tmp_path / "seen.mp4")
    follow(recognizer.stream(), video, frame_rate=8, output=output, visualize=annotated)
    lines = [json.loads(line) for line in Path(output).read_text().splitlines()]
    stream, smoother = recognizer.stream(), recognizer.stream().smoother()
    frames = [frame.pixels for frame in live_input.Input(video, 8.0)]
    assert len(lines) == len(frames) == 8
    for line, frame in zip(lines, frames, strict=True):
        logits = stream.push(frame)
        shown = smoother.update(logits)
        assert (line["label"], line["changed"]) == (shown.answer.label, shown.changed)
        assert line["score"] == pytest.approx(shown.answer.score, abs=1e-5)
        assert line["frame"]["class"] == logits.argmax()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == sum(line["changed"] for line in lines)
    assert "8 frames answered" in err and "dropped" not in err
    written = list(every_frame(annotated))
    assert len(written) >= 22 and min(written[0].shape[:2]) >= 360
    with pytest.raises(UserError, match="a.jsonl already exists"):
        follow(recognizer.stream(), video, frame_rate=8, output=output)
    with pytest.raises(UserError, match="seen.mp4 already exists"):
        follow(recognizer.stream(), video, frame_rate=8, visualize=annotated)


class Given:
    """An input that yields these moments."""

    name, is_live, dropped = "camera 0", True, 0

    def __init__(self, moments):
        self.moments = moments

    def __call__(self, source, rate, *, every_frame):
        return self

    def __iter__(self):
        for moment in self.moments:
            if isinstance(moment, int):
                self.dropped += moment
            else:
                yield moment


def test_a_gap_resets_the_stream_and_dropping_is_reported(recognizer, monkeypatch, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    seen = [Frame(i / 8, frame, True) for i, frame in enumerate(frames)]
    moments = [*seen, Gap("camera 0 is gone"), Gap("camera 0 is back"), *seen, 4, seen[0]]
    monkeypatch.setattr(stream_run, "Input", Given(moments))
    follow(recognizer.stream(), "0", frame_rate=8, output="-")
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    strip = [{**line, "time": 0} for line in lines]
    assert strip[:3] == strip[3:6]  # like a new stream
    assert lines[3]["changed"] and [line["dropped"] for line in lines[5:]] == [0, 4]
    assert err.count("dropping frames: each takes") == 1
    assert "camera 0 is back" in err and "7 frames answered" in err and "4 dropped" in err


def test_an_input_that_is_too_slow_is_reported(recognizer, monkeypatch, capsys):
    frame = np.zeros((40, 40, 3), np.uint8)
    seen = [Frame(i / 3, frame, True) for i in range(25)]
    monkeypatch.setattr(stream_run, "Input", Given(seen))
    follow(recognizer.stream(), "0", frame_rate=8)
    assert (
        "delivers 3 frames a second but the network was trained with 8" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fps", "0"], "--fps is 0.0: it must be above 0"),
        (["--smoothing", "0"], "--smoothing is 0: it must be from 1 .none. to 1000"),
        (
            ["--engine", "onnxruntime"],
            "not an exported folder, which onnxruntime requires: write one with tsm export",
        ),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        command.main(["--model", str(tmp_path), "--input", "0", *arguments])


def test_missing_or_wrong_settings_are_refused(recognizer, video, tmp_path):
    stream = recognizer.stream()
    with pytest.raises(UserError, match="does not store the frame rate of its training: set --fps"):
        follow(stream, video)
    with pytest.raises(UserError, match="it must be `window` or a video file"):
        follow(stream, video, frame_rate=8, visualize=str(tmp_path / "a.png"))
    with pytest.raises(UserError, match="is the input"):
        follow(stream, video, frame_rate=8, visualize=video, overwrite=True)
