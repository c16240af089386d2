"""In every engine, a stream's answer at each frame is that of the clip network."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from itertools import product

import jax
import numpy as np
import pytest

import tsm_jax
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.assemble.weights import load_model
from tsm_jax.deploy.artifact import STREAM, read_artifact
from tsm_jax.deploy.engine import ENGINES, installed
from tsm_jax.deploy.stream import Smoother, Stream
from tsm_jax.errors import UserError
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.exporting.stream_writer import export_stream
from tsm_jax.models.network import build_network, normalize
from tsm_jax.weights.model_directory import write_model_directory

FRAMES = 64
TOLERANCES = {"jax": 1e-5, "onnxruntime": 1e-4, "openvino": 1e-4}


def random_frames(seed, size=32):
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, size, size, 3), np.uint8)


def clip_logits(model, frames):
    """Logits per frame of a single clip of all frames, by the network itself."""
    network = build_network(model.architecture, "float32")
    module = network.module(
        {name: model.tensors[name] for name in network.param_shapes},
        {name: model.tensors[name] for name in network.batch_stat_shapes},
    )
    return np.asarray(jax.jit(module.frame_logits)(normalize(frames[None])))[0]


@pytest.fixture(scope="module")
def past_model(make_model):
    return make_model(shift="past_only", num_segments=FRAMES)


@pytest.fixture(scope="module")
def folder(past_model, formats, tmp_path_factory):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    path = tmp_path_factory.mktemp("inference") / "live"
    export_stream(past_model, str(path), frame_rate=5, formats=formats)
    return path


@pytest.fixture(scope="module")
def expected(past_model):
    return [clip_logits(past_model, random_frames(seed)) for seed in (0, 1)]


def follow(stream, frames):
    """Uses the network's own input size; `push` prepares frames of other sizes."""
    return np.stack([push_prepared(stream, frame) for frame in frames])


def push_prepared(stream, frame):
    logits, stream._state = stream.engine.step(frame[None], stream._state)
    return logits[0]


@pytest.fixture(scope="module")
def new_stream(folder):
    """A new stream in an engine; each graph is opened once."""
    load = cache(Stream.load)

    def new(engine):
        if not installed(engine):
            pytest.skip(f"{engine} is not installed")
        return load(str(folder), engine=engine).new()

    return new


@pytest.mark.parametrize("engine", ENGINES)
def test_every_frame_in_every_engine_and_after_a_reset(engine, new_stream, expected):
    stream = new_stream(engine)
    for seed, answer in enumerate(expected):
        found = follow(stream, random_frames(seed))
        assert relative_difference(found, answer) < TOLERANCES[engine]
        stream.reset()


@pytest.mark.parametrize("engine", ENGINES)
def test_two_streams_never_mix(engine, new_stream, expected):
    streams = [new_stream(engine), new_stream(engine)]
    found = [[], []]
    for frame, i in product(range(8), range(2)):
        found[i].append(push_prepared(streams[i], random_frames(i)[frame]))
    for i in range(2):
        assert relative_difference(np.stack(found[i]), expected[i][:8]) < TOLERANCES[engine]


@pytest.mark.parametrize(
    ("backbone", "fraction"),
    [
        ("resnet18", "1/num_segments"),
        pytest.param("resnet50", "1/8", marks=pytest.mark.slow),
        ("mobilenet_v2", "1/8"),
    ],
)
def test_every_backbone(backbone, fraction, make_model):
    count = 16 if fraction == "1/8" else 4  # 1/16 of 8 channels would be none
    model = make_model(
        backbone=backbone, shift="past_only", num_segments=count, shift_fraction=fraction
    )
    frames = random_frames(2)[:count]
    expected = clip_logits(model, frames)
    stream = Recognizer(model).stream()
    assert relative_difference(follow(stream, frames), expected) < 1e-5
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from tsm_jax.exporting.onnx_graph import build_onnx
    from tsm_jax.exporting.program import make_stream_program

    graph = build_onnx(make_stream_program(model)).SerializeToString()
    session = onnxruntime.InferenceSession(graph)
    state = {port.name: np.zeros(port.shape, np.float32) for port in session.get_inputs()[1:]}
    found = []
    for frame in frames:
        logits, *after = session.run(None, {"frame": frame[None], **state})
        state = dict(zip(state, after, strict=True))
        found.append(logits[0])
    assert relative_difference(np.stack(found), expected) < 1e-4


def test_the_mean_over_a_clip_is_its_answer(past_model, folder):
    """Frames of any size give the answer of `predict`."""
    recognizer = Recognizer(past_model)
    stream = tsm_jax.load_stream(str(folder))
    assert (stream.frame_rate, stream.num_segments) == (5, FRAMES)
    frames = np.random.default_rng(3).integers(0, 256, (FRAMES, 48, 40, 3), np.uint8)
    mean = np.mean([stream.push(frame) for frame in frames], axis=0)
    (clip,) = recognizer.protocol.views(list(frames))
    logits = recognizer.forward(np.asarray(normalize(clip[None])))[0]
    assert relative_difference(mean, logits) < 1e-4
    for wrong in (frames[0].astype(np.float32), frames[0][..., :1], frames[:2]):
        with pytest.raises(ValueError, match=r"it must be uint8 \[H, W, 3\]"):
            stream.push(wrong)


def test_the_readme_shows_the_loop(folder, formats, expected, monkeypatch, capsys):
    if "onnx" not in formats:
        pytest.skip("onnx is not installed")
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(code, {"frames": random_frames(0)[:8, None]})
    printed = capsys.readouterr().out.split("\n")[:-1]
    assert printed == [f"class number {k}" for k in expected[0][:8].argmax(1)]


def test_the_wrong_kind_of_folder_is_refused(folder, exported, make_model, tmp_path):
    with pytest.raises(UserError, match="was exported for streams.*run it with tsm stream"):
        tsm_jax.load(str(folder))
    with pytest.raises(UserError, match="was exported for whole clips.*export --streaming"):
        tsm_jax.load_stream(str(exported))
    assert load_model(str(folder)).architecture.shift == "past_only"
    write_model_directory(make_model(), str(tmp_path / "both"))
    with pytest.raises(
        UserError, match="both has the shift past_first: only a network trained with"
    ):
        tsm_jax.load_stream(str(tmp_path / "both"))
    with pytest.raises(UserError, match="past_first"):
        export_stream(make_model(), str(tmp_path / "x"), frame_rate=5)
    with pytest.raises(UserError, match="does not contain the frame rate of its .*: give --fps"):
        export_stream(make_model(shift="past_only"), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 4}, "version 4, but this tsm_jax reads only up to version 3"),
        ({"kind": "frames"}, "export.kind is 'frames'"),
        ({"labels": [f"class number {k}" for k in range(4)]}, "label"),
    ],
)
def test_a_folder_of_another_version_is_refused(folder, tmp_path, change, message):
    path = tmp_path / "live"
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text())
    config["export"] |= change
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_artifact(str(path), STREAM)


def test_a_graph_that_does_not_return_its_state_is_refused(folder):
    artifact = read_artifact(str(folder), STREAM)
    ports = {
        "frame": ("uint8", (1, 32, 32, 3)),
        "logits": ("float32", (1, 5)),
        "state_0": ("float32", (1, 1, 8, 8)),
        "next_state_0": ("float32", (1, 1, 8, 8)),
    }
    artifact.check_graph("model.onnx", ports)
    wrong = [("next_state_0", (1, 8, 8, 1)), ("frame", (1, 64, 64, 3)), ("logits", (1, 4))]
    for name, shape in wrong:
        with pytest.raises(UserError, match=f"its {name} is"):
            artifact.check_graph("model.onnx", {**ports, name: (ports[name][0], shape)})
    with pytest.raises(UserError, match="has no state_0"):
        artifact.check_graph("model.onnx", {n: p for n, p in ports.items() if "state" not in n})


def logits_of(leader, strength=4.0):
    return np.eye(3, dtype=np.float32)[leader] * np.float32(strength)


def test_what_is_shown_is_the_mean_and_does_not_flicker():
    smoother = Smoother(["a", "b", "c"], frames=2)
    shown = smoother.update(logits_of(0))
    assert (shown.answer.label, shown.changed) == ("a", True)  # the first one at once
    shown = smoother.update(logits_of(1, 6))  # b leads the mean of the two
    assert (shown.answer.label, shown.changed) == ("a", False)
    mean = (logits_of(0) + logits_of(1, 6)) / 2
    np.testing.assert_allclose(shown.scores, np.exp(mean) / np.exp(mean).sum(), rtol=1e-6)
    assert shown.answer.score == shown.scores[0]
    shown = smoother.update(logits_of(1))  # twice in a row
    assert (shown.answer.label, shown.changed) == ("b", True)
    smoother.reset()
    assert smoother.update(logits_of(2)).answer.label == "c"


def test_smoothing_can_be_turned_off():
    smoother = Smoother(["a", "b", "c"], frames=1, patience=1)
    labels = [smoother.update(logits_of(k)).answer.label for k in (0, 1, 0, 2)]
    assert labels == ["a", "b", "a", "c"]
    with pytest.raises(UserError, match="NaN or infinite"):
        smoother.update(np.array([np.nan, 0, 0], np.float32))
