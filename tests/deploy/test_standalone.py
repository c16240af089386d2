"""The exported folder where the training code's packages are not installed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tsm_jax.deploy.engine import open_engine
from tsm_jax.exporting.self_check import relative_difference

# What jax installs, and flatbuffers, which it needs to read exported programs.
JAX_ALONE = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers")
ONNXRUNTIME_ALONE = ("onnxruntime", "numpy")
OF_TRAINING = (
    *("flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorboardX", "onnx"),
    *("array_record", "tensorflow"),
)


@pytest.fixture
def clip_file(clips, tmp_path):
    path = tmp_path / "clips.npy"
    np.save(path, clips)
    return path


def test_stablehlo_needs_only_jax_and_numpy(exported, artifact, clips, clip_file, run_with_only):
    code = f"""
import jax, numpy as np
with open({str(exported / "model.stablehlo")!r}, "rb") as file:
    network = jax.export.deserialize(bytearray(file.read()))
logits, features = jax.jit(network.call)(np.load({str(clip_file)!r}))
print(np.asarray(logits).tolist())
"""
    result = run_with_only(code, *JAX_ALONE)
    assert result.returncode == 0, result.stderr
    expected = open_engine(artifact, "jax").logits(clips)
    assert relative_difference(np.array(json.loads(result.stdout)), expected) < 1e-5


def test_onnx_needs_only_onnxruntime_and_numpy(exported, artifact, clips, clip_file, run_with_only):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    code = f"""
import onnxruntime, numpy as np
session = onnxruntime.InferenceSession({str(exported / "model.onnx")!r})
(logits,) = session.run(["logits"], {{"video": np.load({str(clip_file)!r})}})
print(logits.tolist())
"""
    result = run_with_only(code, *ONNXRUNTIME_ALONE)
    assert result.returncode == 0, result.stderr
    expected = open_engine(artifact, "jax").logits(clips)
    assert relative_difference(np.array(json.loads(result.stdout)), expected) < 1e-5


PREDICT = """
from tsm_jax import cli, predict
sys.argv = ["predict", *{arguments!r}]
cli.run(predict.main)
"""


@pytest.mark.parametrize("engine", ["jax", "onnxruntime", "openvino"])
def test_predict_without_the_packages_of_training(exported, videos, run_with_only, engine):
    blocked = OF_TRAINING
    if engine != "jax":
        pytest.importorskip(engine, reason=f"{engine} is not installed")
        blocked = (*blocked, "jax", "jaxlib")
    arguments = ["--model", str(exported), "--engine", engine, "--output", "-"]
    code = PREDICT.format(arguments=[*arguments, "--input", str(videos / "0.mp4")])
    result = run_with_only(code, blocked=blocked)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["predictions"]) == 5


def test_only_pictures_need_matplotlib(exported, videos, tmp_path, run_with_only):
    arguments = ["--model", str(exported), "--engine", "jax", "--input", str(videos / "0.mp4")]
    picture = str(tmp_path / "out.png")
    code = f"""
from tsm_jax import predict
predict.main({arguments!r})
assert "tsm_jax.figures" not in sys.modules and "tsm_jax.deploy.prediction_run" in sys.modules
from tsm_jax import cli
cli.run(predict.main, [*{arguments!r}, "--visualize", {picture!r}])
"""
    result = run_with_only(code, blocked=(*OF_TRAINING, "matplotlib"))
    assert result.returncode == 1
    assert result.stderr == "error: --visualize needs matplotlib: pip install matplotlib\n"
    assert result.stdout.count("class number") == 5


def test_other_weights_need_the_whole_package(videos, tmp_path, run_with_only):
    arguments = ["--model", str(tmp_path), "--input", str(videos / "0.mp4")]
    result = run_with_only(PREDICT.format(arguments=arguments), blocked=OF_TRAINING)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    message = "is not an exported folder, and other weights need the full tsm_jax package"
    assert message in result.stderr
