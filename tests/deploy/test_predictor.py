"""Many videos: order, errors, batches; and the maps of an answer."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

import tsm_jax
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.assemble.weights import load_model
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.exporting.writer import export_model
from tsm_jax.weights.foreign_models import read_paddle_model, write_paddle_model
from tsm_jax.weights.model_directory import write_model_directory


@pytest.fixture(scope="module")
def predictor(exported):
    return tsm_jax.load(str(exported))


@pytest.fixture(scope="module")
def paths(videos):
    return sorted(map(str, videos.iterdir()))


def test_an_exported_folder_answers_as_the_recognizer(exported, predictor, videos):
    recognizer = Recognizer(load_model(str(exported)))
    for name in ("0.mp4", "5.mp4"):
        expected = recognizer.predict(str(videos / name))
        actual = predictor.predict(str(videos / name))
        assert [p[:2] for p in actual] == [p[:2] for p in expected]
        np.testing.assert_allclose([p.score for p in actual], [p.score for p in expected], 1e-4)


def test_other_weights_run_in_jax(model, exported, predictor, videos, tmp_path):
    write_model_directory(model, str(tmp_path / "model"))
    other = tsm_jax.load(str(tmp_path / "model"))
    assert other.engine.name == "jax"
    path = str(videos / "3.mp4")
    expected = [p.score for p in predictor.predict(path)]
    np.testing.assert_allclose([p.score for p in other.predict(path)], expected, 1e-4)
    (clip,) = predictor.read(path)
    maps = other.activation_maps(clip, 2)
    np.testing.assert_allclose(maps, predictor.activation_maps(clip, 2), atol=1e-4)
    for engine, precision in (("onnxruntime", "float32"), ("auto", "int8")):
        message = r"is not an exported folder, which \w+ requires: write one with python -m"
        with pytest.raises(UserError, match=message):
            tsm_jax.load(str(tmp_path / "model"), engine=engine, precision=precision)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_every_video_gets_its_own_answer_in_order(predictor, paths, batch_size):
    answers = list(predictor.predict_many(paths, top_k=5, batch_size=batch_size))
    assert [answer.path for answer in answers] == paths
    for answer in answers:
        if "broken" in answer.path:
            assert answer.error is not None
            assert answer.path in answer.error
            assert (answer.predictions, answer.clip) == ([], None)
        else:
            assert answer.error is None
            alone = predictor.predict(answer.path)
            assert [p.index for p in answer.predictions] == [p.index for p in alone]
            np.testing.assert_allclose(
                [p.score for p in answer.predictions], [p.score for p in alone], rtol=1e-4
            )
    assert predictor.usage.clips == 5
    assert 0 < predictor.usage.busy <= 1


def test_one_shape_reaches_the_engine(predictor, paths, monkeypatch):
    shapes, logits = [], predictor.engine.logits
    monkeypatch.setattr(
        predictor.engine, "logits", lambda video: (shapes.append(video.shape), logits(video))[1]
    )
    list(predictor.predict_many(paths, batch_size=3))
    assert shapes == [(3, 4, 32, 32, 3)] * 2


def test_decoding_continues_while_the_engine_works(predictor, paths, monkeypatch):
    """The engine waits for a clip of a later batch, which would never arrive without overlap."""
    later = threading.Event()
    read, logits = predictor.read, predictor.engine.logits

    def note(path):
        if path.endswith("1.mp4"):
            later.set()
        return read(path)

    def wait(video):
        assert later.wait(20), "nothing was decoded while the engine worked"
        return logits(video)

    monkeypatch.setattr(predictor, "read", note)
    monkeypatch.setattr(predictor.engine, "logits", wait)
    answers = predictor.predict_many(paths, batch_size=1, threads=1)
    assert next(answers).path == paths[0]
    answers.close()


def test_memory_is_bounded_and_a_defect_is_not_hidden(predictor, monkeypatch):
    started = []

    def read(path):
        started.append(path)
        return np.zeros((1, 4, 32, 32, 3), np.uint8)

    monkeypatch.setattr(predictor, "read", read)
    answers = predictor.predict_many(map(str, range(1000)), batch_size=2, threads=2)
    next(answers)
    answers.close()
    assert len(started) <= 2 * 2 + 2 + 2

    monkeypatch.setattr(predictor, "read", lambda path: [][0])
    with pytest.raises(IndexError):
        list(predictor.predict_many(["a"]))


def test_activation_maps_add_up_to_the_logit(predictor, model, videos):
    (clip,) = predictor.read(str(videos / "1.mp4"))
    logits = predictor.engine.logits(clip[None])[0]
    for k in range(5):
        maps = predictor.activation_maps(clip, k)
        assert maps.shape == (4, 1, 1)
        expected = maps.mean() + model.tensors["head.fc.bias"][k]
        assert expected == pytest.approx(float(logits[k]), rel=1e-4)


def test_predict_raises_for_a_broken_video(predictor, videos):
    with pytest.raises(UnreadableClipError, match="2_broken"):
        predictor.predict(str(videos / "2_broken.mp4"))


def test_the_protocol_can_be_chosen(exported, predictor, videos):
    other = tsm_jax.load(str(exported), protocol="paddle_predict")
    path = str(videos / "4.mp4")
    assert not np.array_equal(other.read(path), predictor.read(path))
    with pytest.raises(UserError, match="unknown protocol 'other'"):
        tsm_jax.load(str(exported), protocol="other")
    with pytest.raises(UserError, match="was exported for 4 segments, not 8"):
        tsm_jax.load(str(exported), num_segments=8)


def test_a_pdparams_through_export_answers_as_before(make_model, videos, tmp_path):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    made = make_model(backbone="resnet50", num_segments=8, shift_fraction="1/num_segments")
    write_paddle_model(made, str(tmp_path / "TSM.pdparams"))
    read = replace(read_paddle_model(str(tmp_path / "TSM.pdparams")), labels=made.labels)
    model = replace(read, preprocessing=made.preprocessing)
    export_model(model, str(tmp_path / "TSM"), formats=("onnx",))
    exported = tsm_jax.load(str(tmp_path / "TSM"), engine="onnxruntime")
    expected = Recognizer(model).predict(str(videos / "3.mp4"))
    actual = exported.predict(str(videos / "3.mp4"))
    assert [p.index for p in actual] == [p.index for p in expected]
    np.testing.assert_allclose([p.score for p in actual], [p.score for p in expected], rtol=1e-3)
    assert exported.num_segments == 8
