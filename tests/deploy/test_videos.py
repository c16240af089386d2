"""Videos as files, addresses, arrays and frames; features; summaries."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest

import tsm_jax
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.cli import run
from tsm_jax.data.decode import every_frame
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.deploy.videos import local_file
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.measure.operations import count
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import build_network
from tsm_jax.models.summary import summarize
from tsm_jax.weights.model_directory import write_model_directory


@pytest.fixture(scope="module")
def recognizer(model):
    return Recognizer(model)


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("directory") / "model"
    write_model_directory(model, str(folder))
    return folder


@pytest.fixture(scope="module")
def path(videos):
    return str(videos / "3.mp4")


@pytest.fixture(scope="module")
def array(path):
    return np.stack(list(every_frame(path)))


@pytest.mark.parametrize("protocol", ["test", "mmaction2_dense_ten_crop"])
def test_an_array_is_answered_like_its_file(recognizer, model, path, array, protocol):
    predictor = Recognizer(model, protocol=protocol)
    views = predictor.read(path)
    for video in (array, list(array), tuple(array), Path(path), array[..., ::-1][..., ::-1]):
        np.testing.assert_array_equal(predictor.read(video), views)


def test_answers_for_all_kinds_of_videos(recognizer, path, array):
    best = recognizer.predict(path, top_k=2)
    assert recognizer.predict(array, 2) == recognizer.predict(list(array), 2) == best
    alike = recognizer.predict([path, Path(path)], 2)
    assert [[p.index for p in answer] for answer in alike] == [[p.index for p in best]] * 2
    answers = list(recognizer.predict_many([Path(path), array, "nowhere.mp4", list(array)], 2))
    assert [answer.path for answer in answers] == [path, "video 1", "nowhere.mp4", "video 3"]
    assert [len(answer.predictions) for answer in answers] == [2, 2, 0, 2]
    assert "nowhere.mp4" in answers[2].error
    with pytest.raises(UnreadableClipError, match="nowhere"):
        recognizer.predict([path, "nowhere.mp4"])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda a: a.astype(np.float32),
            r"the video is float32 \[44, 72, 70, 3\]: it must be uint8",
        ),
        (lambda a: a[0], r"the video is uint8 \[72, 70, 3\]: it must be uint8 \[T, H, W, 3\], RGB"),
        (lambda a: a[None], r"it must be uint8 \[T, H, W, 3\], RGB; predict_many takes several"),
        (lambda a: a.transpose(0, 3, 1, 2), "it must be uint8"),
        (lambda a: a[:0], "the video has no frames"),
        (lambda a: a[:, :0], "it must be uint8"),
        (lambda a: [], "the video has no frames"),
        (lambda a: [a, a], r"frame 0 of the video is uint8 \[44, 72, 70, 3\]: it must be"),
        (lambda a: [*a[:20], *a[20:, :40]], "the video has frames of several sizes"),
        (lambda a: ["a.mp4", a[0]], "frame 0 of the video is <U"),
        (lambda a: iter(a), "the video is of type .*iterator: pass a path, an array or frames"),
    ],
)
def test_arguments_that_are_not_videos_are_refused(recognizer, array, change, message):
    with pytest.raises(UserError, match=message):
        recognizer.predict(change(array))
    with pytest.raises(UserError, match=message.replace("the video", "video 0")):
        list(recognizer.predict_many([change(array)]))


def test_an_array_may_be_reused(recognizer, array):
    """Like a reader that always decodes into the same memory."""
    films = [array, array[::-1], 255 - array]

    def reader():
        memory = np.empty_like(array)
        for film in films:
            memory[...] = film
            yield memory

    found = recognizer.predict_many(reader(), 5, batch_size=2)
    for answer, film in zip(found, films, strict=True):
        expected = recognizer.predict(film)
        assert [p.index for p in answer.predictions] == [p.index for p in expected]
        np.testing.assert_allclose(
            [p.score for p in answer.predictions], [p.score for p in expected], rtol=1e-4
        )


def test_large_arrays_are_not_read_far_ahead(recognizer, monkeypatch):
    taken = []

    def films():
        for number in range(100):
            taken.append(number)
            yield np.zeros((4, 48, 48, 3), np.uint8)

    monkeypatch.setattr("tsm_jax.deploy.predictor._READ_AHEAD", 100_000)  # three of them
    answers = recognizer.predict_many(films(), batch_size=16, threads=2)
    next(answers)
    answers.close()
    assert len(taken) < 16 + 5


@pytest.mark.parametrize("protocol", ["test", "mit_twice_three_crop"])
def test_features_and_the_classifier_give_the_logits(model, path, array, protocol):
    predictor = Recognizer(model, protocol=protocol)
    clip, frames = predictor.embed(path)
    num_clips = predictor.protocol.num_clips
    assert (clip.shape, frames.shape) == ((64,), (4 * num_clips, 64))
    np.testing.assert_allclose(frames.mean(0), clip, atol=1e-6)
    kernel, bias = model.tensors["head.fc.kernel"], model.tensors["head.fc.bias"]
    logits = predictor.logits(predictor.read(path))
    np.testing.assert_allclose(clip @ kernel + bias, logits, atol=1e-4)
    (first, again), (second, failed) = predictor.embed_many([array, "nowhere.mp4"])
    assert (first, second) == ("video 0", "nowhere.mp4")
    np.testing.assert_allclose(again.frames, frames, atol=1e-5)
    assert isinstance(failed, UnreadableClipError)


def test_predict_writes_features(directory, videos, tmp_path, recognizer, capsys):
    output = tmp_path / "features.npz"
    options = ["--model", str(directory), "--input", str(videos), "--embed"]
    with pytest.raises(SystemExit) as exit_:
        run(predict_main, [*options, "--output", str(output)])
    assert exit_.value.code == 1  # one video is broken
    assert capsys.readouterr().err.count("2_broken.mp4") == 1
    with np.load(output) as found:
        assert found["videos"].tolist() == [str(videos / f"{i}.mp4") for i in (0, 1, 3, 4, 5)]
        assert found["frames"].shape == (5, 4, 64)
        expected = recognizer.embed(str(videos / "3.mp4")).clip
        np.testing.assert_allclose(found["clips"][2], expected, atol=1e-5)
    for more, message in (
        ([], "--embed writes arrays: add --output FILE.npz"),
        (["--output", "a.jsonl"], "--embed writes arrays: add --output FILE.npz"),
        (["--output", str(output)], "already exists: choose another file, or --overwrite"),
        (["--output", "b.npz", "--window", "2"], "remove --window"),
    ):
        with pytest.raises(UserError, match=message):
            predict_main([*options, *more])
    broken = ["--model", str(directory), "--input", str(videos / "2_broken.mp4"), "--embed"]
    with pytest.raises(UserError, match="none of 1 videos could be read"):
        predict_main([*broken, "--output", str(tmp_path / "none.npz")])
    assert not (tmp_path / "none.npz").exists()


def predict_main(arguments):
    from tsm_jax.predict import main

    main(arguments)


@pytest.fixture
def address(videos):
    """Serves the folder of videos on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(videos)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_video_behind_an_address(recognizer, address, path, videos):
    film = f"{address}/3.mp4"
    assert recognizer.predict(film) == recognizer.predict(path)
    windows, expected = (list(recognizer.timeline(p, window=0.5)) for p in (film, path))
    assert [moment.predictions for moment in windows] == [m.predictions for m in expected]
    with local_file(film) as copy:
        assert Path(copy).read_bytes() == Path(path).read_bytes()
    assert not Path(copy).parent.exists()
    good, broken, missing, plain = recognizer.predict_many(
        [film, f"{address}/2_broken.mp4", f"{address}/9.mp4", "http://example.com/a.mp4"]
    )
    assert good.error is None
    assert f"cannot decode {address}/2_broken.mp4" in broken.error
    assert f"{address}/9.mp4: the server responded with 404" in missing.error
    assert "not an https URL" in plain.error


def test_timeline_needs_a_file_with_sensible_frames(recognizer, array, film, tmp_path):
    with pytest.raises(UserError, match="an array has no frame rate: pass a video file"):
        list(recognizer.timeline(array))
    strip = film(tmp_path / "strip.mp4", np.zeros((30, 2, 2048, 3), np.uint8))
    large = replace(recognizer.model, preprocessing=Preprocessing(32, 512))
    with pytest.raises(UnreadableClipError, match="2048x2 are too narrow"):
        list(Recognizer(large).timeline(str(strip), window=1.0))


def test_a_summary_counts_what_the_traced_program_does():
    architecture = Architecture("resnet18", 5, 4, width=8)
    summary, network = summarize(architecture, 64), build_network(architecture, "float32")
    params, stats = (
        {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
        for shapes in (network.param_shapes, network.batch_stat_shapes)
    )
    video = jax.ShapeDtypeStruct((1, 4, 64, 64, 3), "float32")
    cost = count(lambda p, s, v: network.apply(p, s, v)[0], params, stats, video)
    assert summary.multiply_adds == cost.operations / 2
    assert summary.parameters == sum(p.size for p in params.values())
    names = [layer.name for layer in summary.layers]
    assert (names[0], names[-1]) == ("backbone.stem", "head.fc")
    assert all(any(p.startswith(name) for name in names) for p in params)
    assert str(summary).count("\n") == len(names) + 1


def test_the_papers_network():
    """Lin et al. 2019, table 2: 33 GFLOPs (multiply-adds) and 24.3 million parameters."""
    summary = summarize(Architecture("resnet50", 400, 8), 224)
    assert round(summary.multiply_adds / 1e9) == 33
    assert round(summary.parameters / 1e6, 1) == 24.3
    assert "24,327,632 parameters, 32.70 billion multiply-adds" in str(summary)


def test_all_public_names_are_there():
    assert set(tsm_jax.__all__) <= set(dir(tsm_jax))
    for name in tsm_jax.__all__:
        value = getattr(tsm_jax, name)
        assert callable(value)
        assert value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = tsm_jax.other
