"""Every protocol in every way to predict agrees with the mean over its views, computed here."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

import tsm_jax
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.data.decode import every_frame
from tsm_jax.data.lists import ClipEntry
from tsm_jax.data.pipeline import Reading, eval_batches
from tsm_jax.data.protocols import PROTOCOLS, Preprocessing, eval_protocol
from tsm_jax.data.sources import EvalClips, VideoSource
from tsm_jax.deploy.engine import installed
from tsm_jax.errors import UserError
from tsm_jax.exporting.writer import export_model
from tsm_jax.models.network import normalize
from tsm_jax.training.mesh import make_mesh, put_batch
from tsm_jax.training.steps import make_eval_step

# A crop of these is as large as the short side.
FULL_SIZE = {name for name in PROTOCOLS if "three_crop" in name}
SHORT_SIDE = 36
ENGINES = ("jax", "onnxruntime", "openvino")


@pytest.fixture(scope="module")
def model(make_model):
    """The network does not matter here, and this one compiles quickly."""
    return make_model(backbone="toy")


@pytest.fixture(scope="module")
def exported(model, formats, tmp_path_factory):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    folder = tmp_path_factory.mktemp("inference") / "TSM"
    export_model(model, str(folder), formats=formats)
    return folder


@pytest.fixture(scope="module")
def full_size_exported(model, formats, tmp_path_factory):
    """The same network for pictures as large as the short side."""
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    folder = tmp_path_factory.mktemp("inference") / "full_size"
    larger = replace(model, preprocessing=Preprocessing(SHORT_SIDE, SHORT_SIDE))
    export_model(larger, str(folder), formats=formats)
    return folder


@pytest.fixture(scope="module")
def load(exported, full_size_exported):
    """Maps (protocol, engine) to a predictor; each graph is opened once."""

    @cache
    def opened(folder, engine):
        return tsm_jax.load(str(folder), engine=engine)

    def load(name, engine):
        if not installed(engine):
            pytest.skip(f"{engine} is not installed")
        predictor = opened(full_size_exported if name in FULL_SIZE else exported, engine)
        predictor.protocol = protocol_of(name)
        return predictor

    return load


def protocol_of(name):
    return eval_protocol(name, short_side=SHORT_SIDE, crop_size=32)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, film):
    """70 frames of 56x44 pixels that differ from place to place and from time to time."""
    coarse = np.random.default_rng(3).integers(0, 256, (70, 4, 4, 3), np.uint8)
    frames = coarse.repeat(11, axis=1).repeat(14, axis=2)
    return str(film(tmp_path_factory.mktemp("film") / "wide.mp4", frames, rate=10))


@pytest.fixture(scope="module")
def score(model):
    """Maps (name of a protocol, all frames of a video) to its mean scores over views, `[K]`."""
    recognizer = Recognizer(model)

    @cache
    def forward(name, frames):
        protocol = protocol_of(name)
        chosen = protocol.choose_frames(len(frames), 4)
        views = protocol.views([np.asarray(frames.frames[i]) for i in chosen])
        clips = (np.asarray(normalize(view[None])) for view in views)
        return np.concatenate([recognizer.forward(clip) for clip in clips])

    def score(name, frames):
        logits = forward(name, frames)
        if name.startswith("mmaction2"):
            return softmax(logits).mean(0)
        return softmax(logits.mean(0))

    return score


class Frames:
    """Converts frames to a key."""

    def __init__(self, frames):
        self.frames = list(frames)

    def __len__(self):
        return len(self.frames)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def wide_frames(wide):
    return Frames(every_frame(wide))


def scores_of(predictions):
    return np.array([p.score for p in sorted(predictions)])


def test_the_views_of_this_video_differ(score, wide_frames):
    """Otherwise no test here could fail."""
    alone = score("test", wide_frames)
    for name in set(PROTOCOLS) - {"test"}:
        assert abs(score(name, wide_frames) / alone - 1).max() > 0.01, name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_predictor_averages_all_views(load, score, wide, wide_frames, name, engine):
    predictor = load(name, engine)
    expected = score(name, wide_frames)
    np.testing.assert_allclose(scores_of(predictor.predict(wide)), expected, rtol=1e-4)
    size = 4 if engine == "onnxruntime" else 1
    first, second = predictor.predict_many([wide, wide], batch_size=size)
    for answer in (first, second):
        np.testing.assert_allclose(scores_of(answer.predictions), expected, rtol=1e-4)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_recognizer_averages_all_views(model, score, wide, wide_frames, name):
    stored = Preprocessing(32, SHORT_SIDE, name)
    recognizer = Recognizer(replace(model, preprocessing=stored))
    expected = score(name, wide_frames)
    np.testing.assert_allclose(scores_of(recognizer.predict(wide)), expected, rtol=1e-4)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_window_is_predicted_like_a_video(load, score, wide, wide_frames, name):
    predictor = load(name, "onnxruntime")
    (moment,) = predictor.timeline(wide, window=7.0)
    np.testing.assert_allclose(moment.scores, score(name, wide_frames), rtol=1e-4)
    moments = list(predictor.timeline(wide, window=3.0, step=1.5))
    for number, moment in enumerate(moments):
        begin = 15 * number
        part = Frames(wide_frames.frames[begin : begin + 30])
        assert (moment.start, moment.end) == (begin / 10, begin / 10 + 3)
        np.testing.assert_allclose(moment.scores, score(name, part), rtol=1e-4)
    assert len(moments) == 3


@pytest.mark.parametrize("name", ["test", "mit_twice_three_crop", "mmaction2_ten_crop"])
def test_prediction_is_what_evaluation_gives(model, load, wide, name):
    protocol = protocol_of(name)
    clips = EvalClips(VideoSource([ClipEntry(wide, 0, None)]), 4, protocol)
    mesh = make_mesh(jax.devices()[:1])
    recognizer = Recognizer(model)
    step = make_eval_step(
        recognizer._network,
        mesh=mesh,
        average_probabilities=protocol.average_probabilities,
    )
    (batch,) = eval_batches(clips, batch_size=1, reading=Reading(threads=1))
    batch = put_batch({key: batch[key] for key in ("video", "label", "mask")}, mesh)
    _, result = step(recognizer.params, recognizer.batch_stats, batch)
    scores = softmax(np.asarray(result["logits"])[0])
    predicted = scores_of(load(name, "onnxruntime").predict(wide))
    np.testing.assert_allclose(predicted, scores, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_size_that_the_graph_does_not_accept_is_refused(exported, engine):
    if not installed(engine):
        pytest.skip(f"{engine} is not installed")
    message = (
        "mit_three_crop uses frames of 36 px, but the exported graph accepts only 32 px: choose"
        " --protocol test, paddle_predict, paddle_dense?"
    )
    with pytest.raises(UserError, match=message) as error:
        tsm_jax.load(str(exported), engine=engine, protocol="mit_three_crop")
    assert "three_crop" not in str(error.value).split("choose", 1)[1]


def test_batches_are_full_across_videos(load, wide, monkeypatch):
    predictor = load("mmaction2_twice_three_crop", "onnxruntime")  # 6 views
    shapes, logits = [], predictor.engine.logits
    monkeypatch.setattr(
        predictor.engine, "logits", lambda video: (shapes.append(len(video)), logits(video))[1]
    )
    answers = list(predictor.predict_many([wide, "gone.mp4", wide, wide], batch_size=4))
    assert [answer.error is None for answer in answers] == [True, False, True, True]
    assert shapes == [4, 4, 4, 4, 4]  # 18 views
    assert predictor.usage.clips == 18
    shapes.clear()
    list(predictor.predict_many([wide], batch_size=1000))
    assert shapes == [6]  # a single batch is not padded


def test_many_views_are_read_ahead_sparingly(load, monkeypatch):
    predictor = load("mmaction2_dense_ten_crop", "onnxruntime")
    started = []

    def read(path):
        started.append(path)
        return np.zeros((100, 4, 32, 32, 3), np.uint8)

    monkeypatch.setattr(predictor, "read", read)
    monkeypatch.setattr("tsm_jax.deploy.predictor._READ_AHEAD", 3 * 100 * 4 * 32 * 32 * 3)
    answers = predictor.predict_many(map(str, range(1000)), batch_size=1, threads=16)
    next(answers)
    answers.close()
    assert len(started) <= 3
