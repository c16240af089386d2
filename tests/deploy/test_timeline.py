"""A sliding window over a video: frames, times, answers."""

from __future__ import annotations

import io
import json
import weakref
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tsm_jax import predict
from tsm_jax.data.protocols import eval_protocol
from tsm_jax.deploy.drawing import draw_timeline
from tsm_jax.deploy.prediction import Moment, best_classes
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.deploy.videos import check_lengths
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.models.architecture import Architecture


class GreyLevels:
    """An engine that remembers which frames it was shown, by their brightness."""

    name, precision, device, batch_size = "fake", "float32", "cpu", 1

    def __init__(self):
        self.seen: list[list[int]] = []

    def logits(self, video):
        self.seen.append([round(float(frame.mean()) / 2) for frame in video[0]])
        return np.array([[float(self.seen[-1][0]), 50.0]], np.float32)

    def features(self, video):
        raise NotImplementedError


@pytest.fixture
def grey_predictor():
    protocol = eval_protocol("test", short_side=16, crop_size=16)
    architecture = Architecture("resnet18", 2, 4)
    return Predictor(
        GreyLevels(), ["late", "early"], architecture, protocol, lambda: np.zeros((1, 2))
    )


@pytest.fixture(scope="module")
def counting_film(tmp_path_factory, film):
    """100 frames at 10 a second; frame i has grey level 2 * i."""
    frames = np.repeat(np.arange(0, 200, 2, dtype=np.uint8), 16 * 16 * 3).reshape(100, 16, 16, 3)
    return str(film(tmp_path_factory.mktemp("film") / "counting.mp4", frames, rate=10))


def test_windows_take_the_middle_frames_of_their_parts(grey_predictor, counting_film):
    moments = list(grey_predictor.timeline(counting_film, window=4.0, step=2.0))
    assert [(m.start, m.end) for m in moments] == [(0, 4), (2, 6), (4, 8), (6, 10)]
    # A window of 4 s in 4 parts: the frames at 0.5, 1.5, 2.5 and 3.5 s after its start.
    expected = [[20 * w + 10 * i + 5 for i in range(4)] for w in range(4)]
    np.testing.assert_allclose(grey_predictor.engine.seen, expected, atol=1)
    assert [m.predictions[0].label for m in moments] == ["early", "early", "early", "late"]


@pytest.mark.parametrize("step, count", [(None, 4), (1.0, 7), (0.1, 7), (4.0, 2), (30.0, 1)])
def test_the_step_is_rounded_to_shared_frames(grey_predictor, counting_film, step, count):
    assert len(list(grey_predictor.timeline(counting_film, window=4.0, step=step))) == count


def test_a_video_shorter_than_the_window_has_one_answer(grey_predictor, counting_film):
    (moment,) = grey_predictor.timeline(counting_film, window=16.0)
    assert (moment.start, moment.end) == (0, 10)
    np.testing.assert_allclose(grey_predictor.engine.seen, [[12, 37, 62, 87]], atol=1)


def test_moments_arrive_while_the_video_is_read(grey_predictor, counting_film):
    moments = grey_predictor.timeline(counting_film, window=1.0)
    next(moments)
    assert len(grey_predictor.engine.seen) == 1
    moments.close()


@pytest.mark.parametrize(
    "window, step",
    [
        *((0, None), (-1, None), (float("inf"), None), (float("nan"), None), (1e-9, None)),
        *((1e300, None), (1, 0), (1, float("nan")), (1, 1e-12), (1, 1e300)),
    ],
)
def test_impossible_windows(window, step):
    with pytest.raises(UserError, match="must be from 0.001 to 1000000 seconds"):
        check_lengths(window, step)


def test_a_window_shorter_than_a_frame(grey_predictor, counting_film):
    with pytest.raises(UnreadableClipError, match=r"0.04 s is shorter than a frame of .* \(0.1 s"):
        next(grey_predictor.timeline(counting_film, window=0.04))


def test_a_jump_of_the_time_stamps_does_not_make_millions_of_windows(grey_predictor, tmp_path):
    path = str(tmp_path / "leap.mkv")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        frames = [av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8)) for _ in range(12)]
        packets = [packet for frame in (*frames, None) for packet in stream.encode(frame)]
        for number, packet in enumerate(packets):
            packet.time_base = Fraction(1, 10)
            packet.pts = packet.dts = number if number < 10 else 10_000_000 + number
            container.mux(packet)
    with pytest.raises(UnreadableClipError, match="has a gap of 1000000 s after frame 9"):
        list(grey_predictor.timeline(path, window=0.4))


def held_at_once(predictor, film, monkeypatch, **lengths):
    """The largest number of prepared frames in memory."""
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Frame(np.ndarray):
        __hash__ = object.__hash__

    def resize(frames, short_side):
        nonlocal most
        prepared = [np.array(frame).view(Frame) for frame in frames]
        if len(frames) == 1:
            alive.update(prepared)
            most = max(most, len(alive))
        return prepared

    protocol = replace(predictor.protocol, resize=resize)
    monkeypatch.setattr(predictor, "protocol", protocol)
    assert list(predictor.timeline(film, **lengths))
    return most


def test_memory_holds_few_frames(grey_predictor, counting_film, monkeypatch):
    assert held_at_once(grey_predictor, counting_film, monkeypatch, window=4.0, step=1.0) <= 5


def test_the_command_writes_lines_and_plots(exported, videos, tmp_path, capsys):
    output = tmp_path / "timeline.jsonl"
    with pytest.raises(SystemExit) as exit_:
        predict.main(
            [
                *("--model", str(exported), "--input", str(videos), "--window", "0.5"),
                *("--top_k", "2", "--output", str(output), "--visualize", str(tmp_path / "plots")),
            ]
        )
    assert exit_.value.code == 1
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["video"] for line in lines if "error" in line] == [str(videos / "2_broken.mp4")]
    first = [line for line in lines if line["video"].endswith("0.mp4")]
    assert [line["start"] for line in first] == [0.25 * i for i in range(len(first))]
    assert all(len(line["predictions"]) == 2 for line in first)
    assert len(first) > 1
    assert len(list((tmp_path / "plots").iterdir())) == 5
    assert "class number" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 200])
def test_the_plot_shows_the_leading_class(count):
    labels = ["left", "right", "never"]
    scores = np.full((count, 3), 0.1, np.float32)
    scores[: count // 2, 0] = scores[count // 2 :, 1] = 0.8
    moments = [
        Moment(float(i), i + 2.0, best_classes(np.log(s), labels, 3), s)
        for i, s in enumerate(scores)
    ]
    with Image.open(io.BytesIO(draw_timeline("x.mp4", moments, labels))) as image:
        pixels = np.asarray(image.convert("RGB"))
    colors = [(0, 114, 178), (213, 94, 0), (0, 158, 115)]
    areas = [int((pixels[400:] == color).all(-1).sum()) for color in colors]  # of the ribbon
    if count == 1:
        assert areas[0] > 5000 and areas[1:] == [0, 0]
    else:
        assert areas[0] > 5000 and areas[1] > 5000 and areas[2] == 0
