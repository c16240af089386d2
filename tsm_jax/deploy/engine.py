"""Engines, which run a network: their common interface and the choice between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from tsm_jax.deploy.artifact import (
    BFLOAT16_STABLEHLO_FILE,
    FEATURES,
    INT8_FILE,
    INT8_WEIGHT_LIMIT,
    LOGITS,
    ONNX_FILE,
    STABLEHLO_FILE,
    Artifact,
    Shape,
    State,
    states,
)
from tsm_jax.errors import UserError
from tsm_jax.host import sums_bytes_in_32_bits, usable_cores

ENGINES = ("jax", "onnxruntime", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")

# The file that an engine reads for a precision. OpenVINO runs the float32 graph in bfloat16 itself.
FILES = {
    ("jax", "float32"): STABLEHLO_FILE,
    ("jax", "bfloat16"): BFLOAT16_STABLEHLO_FILE,
    ("onnxruntime", "float32"): ONNX_FILE,
    ("onnxruntime", "int8"): INT8_FILE,
    ("openvino", "float32"): ONNX_FILE,
    ("openvino", "bfloat16"): ONNX_FILE,
    ("openvino", "int8"): INT8_FILE,
}

# jax needs flatbuffers to read exported programs, but does not install it.
PACKAGES = {
    "jax": ("jax", "flatbuffers"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
}

_JAX_ACCELERATORS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "libtpu")


@dataclass
class Engine:
    """A network that is ready to run."""

    name: str
    precision: str  # of the convolutions
    device: str  # where it runs, for display
    clip_shape: Shape  # (T, S, S, 3), with None for any size
    # Maps uint8 `[N, T, S, S, 3]` and `LOGITS` or `FEATURES` to that output.
    run: Callable[[np.ndarray, str], np.ndarray]

    @property
    def batch_size(self) -> int:
        """Preferred number of clips per batch."""
        return 1 if self.device == "cpu" else 16

    def logits(self, video: np.ndarray) -> np.ndarray:
        """Computes logits, float32 `[N, K]`, for uint8 `[N, T, S, S, 3]`.

        Raises:
            ValueError: the video has another shape or dtype.
        """
        return self.run(self._checked(video), LOGITS)

    def features(self, video: np.ndarray) -> np.ndarray:
        """Computes the features before the average pool, float32 `[N, T, h, w, C]`, for uint8
        `[N, T, S, S, 3]`; raises as `logits`."""
        return self.run(self._checked(video), FEATURES)

    def _checked(self, video: np.ndarray) -> np.ndarray:
        """Returns the video, C-contiguous. OpenVINO would not reject another shape."""
        known = zip(video.shape[1:], self.clip_shape, strict=False)
        fits = video.ndim == 5 and len(video) and all(want in (None, have) for have, want in known)
        if not fits or video.dtype != np.uint8:
            dims = ", ".join("any" if dim is None else str(dim) for dim in self.clip_shape)
            raise ValueError(
                f"the video is {video.dtype} {list(video.shape)}: it must be uint8 [N, {dims}]"
            )
        return np.ascontiguousarray(video)


@dataclass
class StreamEngine:
    """A network that is ready to follow streams."""

    name: str
    device: str  # where it runs, for display
    start: State  # before the first frame
    # Maps uint8 `[1, S, S, 3]` and a state to logits, float32 `[1, K]`, and the next state. The
    # engine keeps no state: whoever holds a state holds a stream.
    step: Callable[[np.ndarray, State], tuple[np.ndarray, State]]


def open_engine(artifact: Artifact, name: str = "auto", precision: str = "float32") -> Engine:
    """Opens the graph of an exported folder.

    Args:
        artifact: the exported folder.
        name: one of `ENGINES`, or `auto`, see `choose_engine`.
        precision: one of `PRECISIONS`.

    Raises:
        UserError: the engine does not exist, is not installed or does not support the precision;
            or the folder has no graph for it, or one that does not match config.json.
    """
    name, graph = _open_graph(artifact, name, precision)
    return Engine(name, precision, graph.device, artifact.clip_shape, graph.run)


def open_stream_engine(artifact: Artifact, name: str = "auto") -> StreamEngine:
    """Opens the graph of a folder exported for streams; otherwise as `open_engine`."""
    name, graph = _open_graph(artifact, name, "float32")
    shapes = (shape for _, shape in states(graph.ports).values())
    start = [np.zeros([size or 0 for size in shape], np.float32) for shape in shapes]
    return StreamEngine(name, graph.device, start, graph.step)


def _open_graph(artifact: Artifact, name: str, precision: str) -> tuple[str, Any]:
    check_names(name, precision)
    if name == "auto":
        name = choose_engine(artifact, precision)
    if packages := missing(*PACKAGES[name]):
        raise UserError(f"the engine {name} is not installed: pip install {' '.join(packages)}")
    if (name, precision) not in FILES:
        able = ", ".join(engine for engine in ENGINES if (engine, precision) in FILES)
        raise UserError(f"the engine {name} does not support {precision}: use {able}")
    file = FILES[name, precision]
    wide = file == INT8_FILE and artifact.int8_weight_limit > INT8_WEIGHT_LIMIT
    if wide and file in artifact.hashes and not sums_bytes_in_32_bits():
        raise UserError(
            f"the int8 graph of {artifact.folder} is from an older version, whose sums overflow on"
            " processors without VNNI, such as this one: use float32, or export it again with"
            f" tsm export --weights {artifact.folder} --output NEW --precisions float32 int8"
            " --videos DIR"
        )
    path = artifact.path(file)
    match name:
        case "jax":
            from tsm_jax.deploy.jax_engine import JaxGraph as Graph
        case "onnxruntime":
            from tsm_jax.deploy.onnx_engines import OnnxRuntimeGraph as Graph
        case _:
            from tsm_jax.deploy.onnx_engines import OpenVinoGraph as Graph
    graph = Graph(path, precision)
    artifact.check_graph(file, graph.ports)
    return name, graph


def choose_engine(artifact: Artifact, precision: str) -> str:
    """Returns the engine that `auto` stands for.

    With a GPU or TPU: ONNX Runtime if it has a GPU provider, otherwise jax if it has a plugin.
    On CPU: the fastest installed one of OpenVINO, ONNX Runtime and jax, in this order. In float32
    on several cores ONNX Runtime comes first: it takes 0.97 of OpenVINO's time on two cores, but
    1.3 on one (measured by benchmarks/predict_engines.py).

    Raises:
        UserError: no installed engine can run this folder.
    """
    fastest = ("openvino", "onnxruntime", "jax")
    if precision == "float32" and usable_cores() > 1:
        fastest = ("onnxruntime", "openvino", "jax")
    usable = [
        name
        for name in fastest
        if installed(name) and FILES.get((name, precision)) in artifact.hashes
    ]
    if not usable:
        raise UserError(
            f"no installed engine can run {artifact.folder} in {precision}:"
            " pip install onnxruntime, or export the model with that precision"
        )
    if "onnxruntime" in usable and _onnxruntime_has_gpu():
        return "onnxruntime"
    if "jax" in usable and any(map(find_spec, _JAX_ACCELERATORS)):
        return "jax"
    return usable[0]


def check_names(name: str, precision: str) -> None:
    """Raises a UserError unless both the engine and the precision exist."""
    if name not in ("auto", *ENGINES):
        raise UserError(f"there is no engine {name!r}: choose auto, {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise UserError(f"there is no precision {precision!r}: choose {', '.join(PRECISIONS)}")


def installed(name: str) -> bool:
    """Returns whether the packages of an engine can be imported."""
    return not missing(*PACKAGES[name])


def missing(*packages: str) -> list[str]:
    """Returns the packages that cannot be imported."""
    return [package for package in packages if find_spec(package) is None]


def _onnxruntime_has_gpu() -> bool:
    from tsm_jax.deploy.onnx_engines import gpu_providers

    return bool(gpu_providers())
