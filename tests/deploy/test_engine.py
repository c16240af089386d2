"""Engines agree with the model; the choice between them; errors of a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.deploy import engine as engine_lib
from tsm_jax.deploy.artifact import is_artifact, read_artifact
from tsm_jax.deploy.engine import choose_engine, installed, open_engine
from tsm_jax.errors import UserError
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.files import sha256
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import normalize


@pytest.fixture(scope="module")
def expected(model, clips):
    return Recognizer(model).forward(np.asarray(normalize(clips)))


@pytest.fixture(scope="module")
def jax_features(artifact, clips):
    return open_engine(artifact, "jax").features(clips)


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", ["jax", "onnxruntime", "openvino"])
def test_engines_agree(artifact, clips, expected, jax_features, name, precision, tolerance):
    if not installed(name) or (name, precision) == ("onnxruntime", "bfloat16"):
        pytest.skip(f"no {precision} in {name}, or {name} is not installed")
    try:
        engine = open_engine(artifact, name, precision)
    except UserError as error:
        pytest.skip(str(error))  # a processor without bfloat16
    logits = engine.logits(clips)
    assert (logits.shape, logits.dtype) == ((3, 5), np.float32)
    assert relative_difference(logits, expected) < tolerance
    assert relative_difference(engine.logits(clips[1:2]), expected[1:2]) < tolerance
    features = engine.features(clips)
    assert features.shape == (3, 4, 1, 1, 64)
    assert relative_difference(features, jax_features) < tolerance


@pytest.mark.parametrize("name", ["jax", "onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((1, 8, 32, 32, 3), np.uint8),  # twice the frames, as two clips in time would be
        ((1, 4, 36, 36, 3), np.uint8),
        ((1, 4, 3, 32, 32), np.uint8),
        ((4, 32, 32, 3), np.uint8),
        ((0, 4, 32, 32, 3), np.uint8),
        ((1, 4, 32, 32, 3), np.float32),
    ],
)
def test_engines_refuse_other_shapes(artifact, name, shape, dtype):
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    engine = open_engine(artifact, name)
    for run in (engine.logits, engine.features):
        with pytest.raises(ValueError, match=r"it must be uint8 \[N, 4, 32, 32, 3\]"):
            run(np.zeros(shape, dtype))


def test_a_recognizer_refuses_other_clips_but_takes_any_size(model):
    engine = Recognizer(model).engine
    for clip in (np.zeros((1, 8, 32, 32, 3), np.uint8), np.zeros((1, 4, 32, 32, 3), np.float32)):
        for run in (engine.logits, engine.features):
            with pytest.raises(ValueError, match=r"it must be uint8 \[N, 4, any, any, 3\]"):
                run(clip)
    assert engine.logits(np.zeros((1, 4, 36, 36, 3), np.uint8)).shape == (1, 5)


@pytest.fixture
def machine(monkeypatch, artifact):
    """Pretends that a machine has these packages; the folder has all graphs."""

    def set_up(*packages, gpu_provider=False, cores=2):
        monkeypatch.setattr(
            engine_lib, "find_spec", lambda name: name in (*packages, "flatbuffers") or None
        )
        monkeypatch.setattr(engine_lib, "_onnxruntime_has_gpu", lambda: gpu_provider)
        monkeypatch.setattr(engine_lib, "usable_cores", lambda: cores)
        return replace(artifact, hashes=dict.fromkeys(engine_lib.FILES.values(), ""))

    return set_up


@pytest.mark.parametrize(
    "packages, gpu_provider, chosen",
    [
        (("jax", "onnxruntime", "openvino"), False, "onnxruntime"),
        (("jax", "openvino"), False, "openvino"),
        (("jax", "onnxruntime"), False, "onnxruntime"),
        (("jax",), False, "jax"),
        (("jax", "onnxruntime", "openvino", "jax_cuda13_plugin"), False, "jax"),
        (("jax", "onnxruntime", "openvino", "jax_cuda13_plugin"), True, "onnxruntime"),
    ],
)
def test_auto_takes_the_fastest_for_the_device(machine, packages, gpu_provider, chosen):
    artifact = machine(*packages, gpu_provider=gpu_provider)
    assert choose_engine(artifact, "float32") == chosen


@pytest.mark.parametrize(("cores", "precision"), [(1, "float32"), (2, "bfloat16"), (2, "int8")])
def test_auto_takes_openvino_on_one_core_and_in_low_precision(machine, cores, precision):
    artifact = machine("jax", "onnxruntime", "openvino", cores=cores)
    assert choose_engine(artifact, precision) == "openvino"


def test_auto_takes_an_engine_that_supports_the_precision(machine):
    assert choose_engine(machine("jax", "onnxruntime"), "bfloat16") == "jax"
    with pytest.raises(UserError, match="no installed engine can run"):
        choose_engine(machine("jax"), "int8")


@pytest.mark.parametrize(
    "name, precision, message",
    [
        ("torch", "float32", "there is no engine 'torch': choose auto, jax, onnxruntime, openvino"),
        ("auto", "float16", "there is no precision 'float16': choose float32"),
        ("jax", "int8", "the engine jax does not support int8: use onnxruntime, openvino"),
    ],
)
def test_an_impossible_request_is_one_line(artifact, name, precision, message):
    with pytest.raises(UserError, match=message):
        open_engine(artifact, name, precision)


@pytest.mark.parametrize("name", ["auto", "onnxruntime", "openvino"])
def test_an_older_int8_graph_is_refused_where_its_sums_overflow(artifact, name, monkeypatch):
    older = replace(artifact, int8_weight_limit=127, hashes={"model_int8.onnx": ""})
    monkeypatch.setattr(engine_lib, "missing", lambda *packages: [])
    for sums in (False, True):
        monkeypatch.setattr(engine_lib, "sums_bytes_in_32_bits", lambda sums=sums: sums)
        message = "sums overflow on processors without VNNI" if not sums else "model_int8.onnx"
        with pytest.raises(UserError, match=message):  # the second time, the file is missing
            open_engine(older, name, "int8")


def test_an_engine_that_is_not_installed(artifact, monkeypatch):
    monkeypatch.setattr(engine_lib, "find_spec", lambda name: name == "jax" or None)
    with pytest.raises(UserError, match="pip install openvino"):
        open_engine(artifact, "openvino")
    with pytest.raises(UserError, match="the engine jax is not installed: pip install flatbuffers"):
        open_engine(artifact, "jax")


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def test_a_changed_graph_is_refused(copied):
    path = copied / "model.stablehlo"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model.stablehlo is not the file that was exported"):
        open_engine(read_artifact(str(copied)), "jax")
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*model.stablehlo"):
        open_engine(read_artifact(str(copied)), "jax")


def test_a_folder_of_another_version_or_none(copied, tmp_path):
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["export"]["version"] = 99
    path.write_text(json.dumps(config))
    message = "has version 99, but this tsm_jax reads only up to version 3"
    with pytest.raises(UserError, match=message):
        read_artifact(str(copied))
    del config["export"]["version"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="has version None, which is not a version number"):
        read_artifact(str(copied))
    path.write_text("{")
    for read in (read_artifact, is_artifact):
        with pytest.raises(UserError, match=r"config.json: it is not valid JSON"):
            read(str(copied))
    assert not is_artifact(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(export=[]), r"export is \[\]"),
        (lambda c: c["export"].update(version=True), "has version True, which is not"),
        (lambda c: c["export"].update(labels="abcde"), "export.labels is 'abcde'"),
        (lambda c: c["export"].update(labels=["a"] * 5), "label 2 repeats 'a' of label 1"),
        (lambda c: c["export"].update(labels=list("abcd")), "has 4 labels, but the model has 5"),
        (
            lambda c: c["export"].update(labels=list("abcde")),
            "labels.txt and .*config.json have different class names",
        ),
        (lambda c: c["export"].update(files=[]), "export.files has no SHA-256"),
        (lambda c: c["export"]["files"]["model.stablehlo"].update(sha256=5), "has no SHA-256 of"),
        (lambda c: c["architecture"].update(num_segments="4"), "num_segments is '4'"),
        (lambda c: c["preprocessing"].update(protocol=["test"]), r"protocol is \['test'\]"),
    ],
)
def test_a_wrong_description_is_refused(copied, change, message):
    path = copied / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_artifact(str(copied))


@pytest.mark.parametrize("name", ["jax", "onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": list("abc")}, r"float32\[N, 5\] instead of float32\[N, 3\]"),
        ({"architecture": Architecture("resnet18", 5, 3)}, r"instead of uint8\[N, 3, 32, 32, 3\]"),
        ({"crop_size": 48}, r"instead of uint8\[N, 4, 48, 48, 3\]"),
    ],
)
def test_a_graph_that_does_not_match_its_description(artifact, name, changes, message):
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    with pytest.raises(UserError, match=f"does not match config.json: its .*{message}"):
        open_engine(replace(artifact, **changes), name)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_that_is_not_a_graph_is_refused_in_one_line(copied, name, capfd):
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    path = copied / "model.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    found = read_artifact(str(copied))
    found = replace(found, hashes={path.name: sha256(path)})
    with pytest.raises(UserError, match=r"cannot load .*model.onnx: ") as error:
        open_engine(found, name)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_ports_that_are_missing_or_of_another_type(artifact):
    size = (None, 4, 32, 32, 3)
    right = {"video": ("uint8", size), "logits": ("float32", (None, 5))}
    artifact.check_graph("x", right)
    for ports, message in [
        ({"x": right["video"], "logits": right["logits"]}, "x has no video"),
        ({**right, "video": ("float32", size)}, r"video is float32\[N, 4"),
        ({**right, "logits": ("float32", (None, None))}, r"logits is float32\[N, N\] instead of"),
        (
            {**right, "features": ("float32", (None, 3, 8, 1, 1))},
            r"features is float32\[N, 3",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            artifact.check_graph("x", ports)


def test_a_classifier_that_is_damaged(copied):
    values = np.zeros((64, 5), np.float32)
    for damaged, message in [
        (values[:, :4], r"head.fc.kernel has shape \(64, 4\), which does not match 5 classes"),
        (values + np.nan, "head.fc.kernel contains values that are not finite"),
    ]:
        path = copied / "model.safetensors"
        save_file({"head.fc.kernel": np.ascontiguousarray(damaged)}, path)
        found = read_artifact(str(copied))
        found = replace(found, hashes={**found.hashes, path.name: sha256(path)})
        with pytest.raises(UserError, match=message):
            found.classifier()


def test_openvino_neither_forks_nor_sends_telemetry():
    pytest.importorskip("openvino", reason="openvino is not installed")
    code = (
        "import os; os.register_at_fork(before=lambda: print('forked'));"
        "from tsm_jax.deploy.onnx_engines import has_bfloat16; has_bfloat16();"
        "import sys; print('openvino' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "True\n", result.stderr


def test_a_signal_after_several_openvino_engines_reaches_its_handler(exported):
    """It would crash the process if plugins of deleted engines left a freed stack."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    code = (
        "import gc, signal, sys\n"
        "from tsm_jax.deploy.artifact import read_artifact\n"
        "from tsm_jax.deploy.engine import open_engine\n"
        "import numpy as np\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard', flush=True))\n"
        "artifact = read_artifact(sys.argv[1])\n"
        "engines = [open_engine(artifact, 'openvino') for _ in range(2)]\n"
        "for engine in engines:\n"
        "    engine.logits(np.zeros((1, *engine.clip_shape), np.uint8))\n"
        "del engine, engines[0]\n"
        "gc.collect()\n"
        "del engines\n"
        "gc.collect()\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "heard\n"), run.stderr
